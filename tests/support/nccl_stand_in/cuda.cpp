// The CUDA runtime's part of the stand-in: see nccl_stand_in.hpp.

#include <cuda.h>

#include <algorithm>
#include <cstring>

#include "support/nccl_stand_in/state.hpp"

namespace rankslice::test {
namespace {

thread_local std::shared_ptr<Knobs> knobs = std::make_shared<Knobs>();
thread_local int current_device = 0;

std::lock_guard<std::mutex> locked() { return std::lock_guard(state().mutex); }

}  // namespace

State& state() {
  static State the_state;
  return the_state;
}

std::shared_ptr<Knobs> const& my_knobs() { return knobs; }

void be_stand_in_rank(StandInRank const& rank) {
  knobs = std::make_shared<Knobs>(Knobs{.rank = rank});  // as of a process that has not used CUDA
  current_device = 0;
}

void note_misuse(std::string what) { state().misuse.push_back(std::move(what)); }

CUresult primary_context_state(CUdevice device, unsigned int* flags, int* active) {
  *flags = 0;
  *active = knobs->contexts.contains(device) ? 1 : 0;
  return CUDA_SUCCESS;
}

cudaError_t allocate(void** memory, std::size_t bytes, std::optional<int> device) {
  auto const lock = locked();
  auto* const begin = new std::byte[bytes];
  state().memory[begin] = {.bytes = bytes, .device = device};
  *memory = begin;
  return cudaSuccess;
}

cudaError_t release(void* memory) {
  auto const lock = locked();
  auto* const begin = static_cast<std::byte*>(memory);
  auto const found = state().memory.find(begin);
  if (found == state().memory.end()) {
    note_misuse("memory was freed that was not allocated");
    return cudaErrorInvalidValue;
  }
  run_streams();
  if (in_use(begin, found->second.bytes)) note_misuse("freeing memory that an operation uses waits for it");
  state().memory.erase(found);
  delete[] begin;
  return cudaSuccess;
}

std::set<int> stand_in_contexts() { return knobs->contexts; }

cudaError_t unbounded_wait(char const* name) {
  auto const lock = locked();
  note_misuse(std::string(name) + " waits without bound");
  return cudaSuccess;
}

}  // namespace rankslice::test

using namespace rankslice::test;

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) {
  *version = my_knobs()->rank.driver;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  auto const& rank = my_knobs()->rank;
  *count = 0;
  if (rank.driver < CUDART_VERSION) return cudaErrorInsufficientDriver;
  if (rank.gpus.empty()) return cudaErrorNoDevice;
  *count = static_cast<int>(rank.gpus.size());
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  auto const number = my_knobs()->rank.gpus.at(static_cast<std::size_t>(device));
  std::memset(properties, 0, sizeof *properties);
  std::fill(std::begin(properties->uuid.bytes), std::end(properties->uuid.bytes), static_cast<char>(number));
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= static_cast<int>(my_knobs()->rank.gpus.size())) return cudaErrorInvalidDevice;
  current_device = device;
  my_knobs()->contexts.insert(device);
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(char const* symbol, void** found, unsigned int /*version*/,
                                             unsigned long long /*flags*/, cudaDriverEntryPointQueryResult* status) {
  bool const known = std::strcmp(symbol, "cuDevicePrimaryCtxGetState") == 0;
  *found = known ? reinterpret_cast<void*>(&primary_context_state) : nullptr;
  *status = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

char const* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "stand-in error"; }
char const* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned int /*flags*/) {
  return allocate(memory, bytes, std::nullopt);
}
cudaError_t cudaFreeHost(void* memory) { return release(memory); }
cudaError_t cudaMalloc(void** memory, std::size_t bytes) { return allocate(memory, bytes, current_device); }
cudaError_t cudaFree(void* memory) { return release(memory); }

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, void const* pointer) {
  auto const lock = locked();
  *attributes = {};
  if (my_knobs()->rank.pointer_error != cudaSuccess) return my_knobs()->rank.pointer_error;
  for (auto const& [begin, memory] : state().memory) {
    if (pointer < begin || pointer >= begin + memory.bytes) continue;
    attributes->type = memory.device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->device = memory.device.value_or(0);
    return cudaSuccess;
  }
  attributes->type = cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int /*flags*/) {
  auto const lock = locked();
  *stream = new CUstream_st;
  state().streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  auto const lock = locked();
  if (launching_on(stream)) note_misuse("a stream was destroyed under NCCL");
  state().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t /*stream*/) { return unbounded_wait("cudaStreamSynchronize"); }
cudaError_t cudaEventSynchronize(cudaEvent_t /*event*/) { return unbounded_wait("cudaEventSynchronize"); }
cudaError_t cudaDeviceSynchronize() { return unbounded_wait("cudaDeviceSynchronize"); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int /*flags*/) {
  auto const lock = locked();
  *event = new CUevent_st;
  state().events.insert(*event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  auto const lock = locked();
  for (auto* const stream : state().streams) {
    for (auto& item : stream->items) {
      if (item.event == event) item.event = nullptr;
    }
  }
  state().events.erase(event);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  auto const lock = locked();
  if (launching_on(stream)) note_misuse("a stream was used while NCCL brought operations onto it");
  ++event->pending;
  stream->items.push_back({.operations = {}, .event = event});
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  auto const lock = locked();
  run_streams();
  return event->pending == 0 ? cudaSuccess : cudaErrorNotReady;
}

}  // extern "C"
