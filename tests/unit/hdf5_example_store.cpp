#include <fstream>
#include <iostream>

#include "format/hdf5_store_writer.hpp"
#include "support/temp_dir.hpp"

// Writes a small store whose values test_hdf5_h5py.py knows.

namespace {

using namespace rankslice;

template <typename Value>
void write_at(std::string const& path, std::uint64_t offset, std::vector<Value> const& values) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(offset));
  file.write(reinterpret_cast<char const*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(Value)));
}

void make_example(std::string const& path) {
  test::TempDir const folder;
  std::ofstream(folder.file("config.json")) << "{}";
  StoreContents contents;
  contents.family = "qwen3_5_moe";
  contents.tensors = {{"experts.down_projs", DType::BF16, {2, 3}, 0},
                      {"half", DType::F16, {2}, 0},
                      {"odd/100%", DType::F32, {2}, 0},
                      {"steps", DType::I64, {}, 0}};
  contents.source = {{"experts.down_proj", {5, 2, 0xFFFFFFFFFFFFFFFF}}};
  contents.hf.files = {{"model.safetensors", 99, std::vector<std::byte>(4, std::byte{7})}};
  contents.hf.side_files = {{"config.json", 2, folder.file("config.json"), 0, {}}};
  auto const layout = create_store(path, contents);
  write_at<std::uint16_t>(path, layout.offsets[0], {0x3F80, 0xC000, 0x3E20, 0x7F80, 0x0001, 0x8000});
  write_at<std::uint16_t>(path, layout.offsets[1], {0x3E00, 0xFBFF});
  write_at<float>(path, layout.offsets[2], {0.1F, -1e30F});
  write_at<std::int64_t>(path, layout.offsets[3], {-123456789012345});
  complete_store(path);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    make_example(argv[1]);
  } catch (std::exception const& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
