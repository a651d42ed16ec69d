#include "transform/transfer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "rankslice/error.hpp"

#include "support/faulty_reader.hpp"
#include "support/memory_reader.hpp"
#include "support/naive_digest.hpp"
#include "support/raw_checkpoint.hpp"
#include "support/raw_safetensors.hpp"
#include "support/temp_dir.hpp"

namespace rankslice {
namespace {

using test::Bytes;
using test::MemoryReader;
using testing::HasSubstr;
using Numbers = std::vector<std::uint64_t>;

constexpr std::uint64_t kBefore = 13;  // odd, so that no element is aligned in the file
constexpr std::uint64_t kAfter = 5;

Bytes slice(Bytes const& bytes, std::uint64_t begin, std::uint64_t end) {
  return {bytes.begin() + std::ptrdiff_t(begin), bytes.begin() + std::ptrdiff_t(end)};
}

/// BF16 as F32: the same bits with zeros below.
Bytes widened(Bytes const& bf16) {
  Bytes f32(2 * bf16.size());
  for (std::size_t i = 0; i < bf16.size(); ++i) f32[i / 2 * 4 + 2 + i % 2] = bf16[i];
  return f32;
}

/// A parameter with random values in both its forms, made without the code under test.
struct Example {
  Parameter parameter;
  Bytes hf, native;

  [[nodiscard]] Bytes const& in(Form form) const { return form == Form::hf ? hf : native; }
  [[nodiscard]] std::uint64_t units() const {
    if (parameter.stacked_experts) return parameter.hf_shape[0];
    return hf.size() / unit_bytes(Form::hf);
  }
  /// Bytes of an expert, an element, or a byte of a sub-byte tensor.
  [[nodiscard]] std::uint64_t unit_bytes(Form form) const {
    if (bits(parameter.hf_dtype) < 8) return 1;
    auto const element = bits(parameter.dtype_in(form)) / 8;
    if (!parameter.stacked_experts) return element;
    return element * parameter.hf_shape[1] * parameter.hf_shape[2];
  }
  /// The digest of some units: of the source's values, or of the converted ones.
  [[nodiscard]] Numbers digest(Range part, Form form) const {
    if (bits(parameter.hf_dtype) < 8) return test::naive_digest(1, {hf.size()}, hf, part);
    auto const element = bits(parameter.dtype_in(form)) / 8;
    auto const per_unit = unit_bytes(form) / element;
    auto const& bytes = form == Form::hf ? hf : native;
    return test::naive_digest(element, parameter.hf_shape, bytes, {part.begin * per_unit, part.end * per_unit});
  }
};

Example dense(DType dtype, Shape const& shape) {
  auto const bytes = test::random_bytes(byte_size(dtype, shape), element_count(shape));
  return {{.hf_key = "dense", .fqn = "dense", .hf_dtype = dtype, .dtype = dtype, .hf_shape = shape, .shape = shape},
          bytes,
          bytes};
}

Example converted(Shape const& shape) {
  auto example = dense(DType::BF16, shape);
  example.parameter.dtype = DType::F32;
  example.native = widened(example.hf);
  return example;
}

Example swapped(DType dtype, Shape const& shape) {
  auto example = dense(dtype, shape);
  example.parameter.shape = {shape[0], shape[2], shape[1]};
  example.parameter.layout = Layout::swapped;
  example.parameter.stacked_experts = true;
  example.native = test::swap_axes(example.hf, shape, bits(dtype) / 8);
  return example;
}

Example stacked_as_is(DType dtype, Shape const& shape) {
  auto example = dense(dtype, shape);
  example.parameter.stacked_experts = true;
  return example;
}

std::vector<Range> parts_of(std::uint64_t units) {
  std::vector<Range> parts{{0, units}, {0, 0}, {units, units}};
  if (units >= 3) parts.insert(parts.end(), {{0, 1}, {1, units - 1}, {units / 2, units}, {units - 1, units}});
  return parts;
}

/// Sums of blocks that were reported, and their number.
struct Reported {
  std::uint64_t bytes = 0, blocks = 0;
  [[nodiscard]] BlockDone hook() {
    return [this](std::uint64_t size) {
      bytes += size;
      ++blocks;
    };
  }
};

/// Where the digests of one parameter go.
class Sums {
 public:
  explicit Sums(Parameter const& parameter)
      : parameter_(parameter), digest_(parameter), sums_(std::vector<Parameter>{parameter}) {}
  [[nodiscard]] DigestSink sink() { return {.digest = &digest_, .sums = &sums_, .index = 0}; }
  void expect(Example const& example, Range part) const {
    EXPECT_EQ(numbers(sums_.source), example.digest(part, Form::hf));
    auto const stored =
        parameter_.converted() ? example.digest(part, Form::native) : Numbers(numbers(sums_.stored).size());
    EXPECT_EQ(numbers(sums_.stored), stored);
  }

 private:
  static Numbers numbers(DigestTable const& table) { return {table.of(0).begin(), table.of(0).end()}; }

  Parameter const& parameter_;
  ParameterDigest digest_;
  Digests sums_;
};

/// What surrounds a tensor in a file.
Bytes framed(Bytes const& bytes) {
  auto file = test::random_bytes(kBefore, 1);
  file.insert(file.end(), bytes.begin(), bytes.end());
  auto const after = test::random_bytes(kAfter, 2);
  file.insert(file.end(), after.begin(), after.end());
  return file;
}

void expect_reads(Example const& example, Form form, Range part, MemoryReader& file, std::uint64_t origin) {
  auto const native_unit = example.unit_bytes(Form::native);
  Bytes const guard(64, std::byte{0xa5});
  auto out = guard;
  out.resize(guard.size() + part.size() * native_unit + guard.size(), guard[0]);

  Reported reported;
  Sums sums(example.parameter);
  Transfer(reported.hook())
      .read(example.parameter, part, file, {.form = form, .origin = origin}, out.data() + guard.size(), sums.sink());

  auto expected = guard;
  auto const held = slice(example.native, part.begin * native_unit, part.end * native_unit);
  expected.insert(expected.end(), held.begin(), held.end());
  expected.insert(expected.end(), guard.begin(), guard.end());
  EXPECT_TRUE(out == expected) << "bytes differ";
  sums.expect(example, part);
  EXPECT_EQ(reported.bytes, part.size() * example.unit_bytes(form));
}

void expect_digests(Example const& example, Form form, Range part, MemoryReader& file, std::uint64_t origin) {
  Reported reported;
  Sums sums(example.parameter);
  Transfer(reported.hook()).digest(example.parameter, part, file, {.form = form, .origin = origin}, sums.sink());
  sums.expect(example, part);
  EXPECT_EQ(reported.bytes, part.size() * example.unit_bytes(form));
}

void expect_writes(Example const& example, Form form, Range part) {
  test::TempDir dir;
  auto const path = dir.file("out");
  auto const before = framed(test::random_bytes(example.in(form).size(), 3));
  test::write_file(path, before);

  Reported reported;
  Sums sums(example.parameter);
  auto writer = FileWriter::open(path);
  auto const* const native = example.native.data() + part.begin * example.unit_bytes(Form::native);
  Transfer(reported.hook())
      .write(example.parameter, part, native, writer, {.form = form, .origin = kBefore}, sums.sink());
  writer.close();

  auto expected = before;
  auto const unit = example.unit_bytes(form);
  auto const written = slice(example.in(form), part.begin * unit, part.end * unit);
  std::ranges::copy(written, expected.begin() + std::ptrdiff_t(kBefore + part.begin * unit));
  EXPECT_TRUE(test::file_bytes(path) == expected) << "bytes differ";
  sums.expect(example, part);
  EXPECT_EQ(reported.bytes, written.size());
}

void expect_all_ways(Example const& example) {
  for (auto const form : {Form::hf, Form::native}) {
    for (auto const part : parts_of(example.units())) {
      SCOPED_TRACE(testing::Message() << name(example.parameter.hf_dtype) << " "
                                      << to_string(example.parameter.hf_shape) << (form == Form::hf ? " hf" : " native")
                                      << " [" << part.begin << ", " << part.end << ")");
      MemoryReader whole(framed(example.in(form)));
      expect_reads(example, form, part, whole, kBefore);
      expect_digests(example, form, part, whole, kBefore);
      expect_writes(example, form, part);
    }
  }
}

// A dense tensor, in elements: one less, exactly, and one more than a block of 512 KiB and two of them.
TEST(Transfer, MovesDenseTensorsOfEveryWidthAroundTheBlockSize) {
  for (auto const dtype : {DType::F8_E4M3, DType::BF16, DType::F32, DType::I64}) {
    auto const block = 512_KiB / (bits(dtype) / 8);
    for (auto const count : {block - 1, block, block + 1, 2 * block + 1}) expect_all_ways(dense(dtype, {count}));
  }
}

TEST(Transfer, MovesDenseTensorsOfEveryRank) {
  for (auto const dtype : {DType::BOOL, DType::I16, DType::U32, DType::F64, DType::C64}) {
    for (auto const& shape :
         {Shape{}, Shape{1}, Shape{7, 9}, Shape{3, 5, 2}, Shape{2, 3, 4, 5}, Shape{0}, Shape{4, 0}}) {
      expect_all_ways(dense(dtype, shape));
    }
  }
}

TEST(Transfer, MovesSubByteTensorsAsBytes) {
  for (auto const dtype : {DType::F4, DType::F6_E2M3, DType::F6_E3M2}) {
    for (auto const& shape : {Shape{8}, Shape{3, 4, 8}, Shape{1_MiB + 8}, Shape{0, 8}}) {
      expect_all_ways(dense(dtype, shape));
    }
  }
}

// Rule 55: half the bytes in the file, so a block of the file becomes two in memory.
TEST(Transfer, ConvertsOnTheWayAndBackAroundTheBlockSize) {
  for (auto const& shape :
       {Shape{}, Shape{32}, Shape{256_KiB - 1}, Shape{256_KiB}, Shape{256_KiB + 1}, Shape{3, 7, 11}, Shape{0}}) {
    expect_all_ways(converted(shape));
  }
}

// Rows of 8200 bytes: 63 of them would fill a block, so a strip is 64.
TEST(Transfer, SwapsTheAxesOfExpertsAroundTheStripSize) {
  for (auto const dtype : {DType::U8, DType::BF16, DType::F32, DType::F64}) {
    auto const columns = 8200 / (bits(dtype) / 8);
    for (std::uint64_t const rows : {63U, 64U, 65U, 130U}) expect_all_ways(swapped(dtype, {2, rows, columns}));
  }
}

TEST(Transfer, SwapsTheAxesOfExpertsOfAnyShape) {
  for (auto const dtype : {DType::I8, DType::F16, DType::I32, DType::U64}) {
    for (auto const& shape : {Shape{1, 1, 1}, Shape{3, 5, 7}, Shape{5, 64, 3}, Shape{4, 1, 70}, Shape{3, 200, 1},
                              Shape{3, 129, 65}, Shape{2, 3, 0}, Shape{2, 0, 3}, Shape{0, 2, 3}}) {
      expect_all_ways(swapped(dtype, shape));
    }
  }
}

TEST(Transfer, KeepsTheAxesOfExpertsThatAreStoredAsTheyAreUsed) {
  for (auto const& shape : {Shape{3, 5, 7}, Shape{3, 600, 513}}) expect_all_ways(stacked_as_is(DType::BF16, shape));
}

// A shard's file: the origin of the tensor lies before the file, modulo 2^64.
TEST(Transfer, ReadsFilesThatHoldOnlyALaterPart) {
  for (auto const& example : {dense(DType::BF16, {1000}), converted({1000}), swapped(DType::BF16, {6, 33, 70}),
                              dense(DType::F4, {1000}), stacked_as_is(DType::F32, {6, 3, 5})}) {
    for (auto const form : {Form::hf, Form::native}) {
      auto const unit = example.unit_bytes(form);
      Range const part{example.units() / 2, example.units()};
      MemoryReader file(framed(slice(example.in(form), part.begin * unit, part.end * unit)));
      auto const origin = kBefore - part.begin * unit;
      ASSERT_GT(origin, kBefore) << "wraps around";
      expect_reads(example, form, part, file, origin);
      expect_reads(example, form, {part.begin + 1, part.end - 1}, file, origin);
      expect_digests(example, form, part, file, origin);
    }
  }
}

// What is digested is where it was read from: a wrong origin gives another digest, though the caller meant the same.
TEST(Transfer, DigestsInTheCoordinatesOfTheOffsetsThatItReads) {
  auto const example = dense(DType::BF16, {64});
  MemoryReader file(framed(example.hf));
  Sums sums(example.parameter);
  Bytes out(2 * 16);
  Transfer().read(example.parameter, {8, 24}, file, {.form = Form::hf, .origin = kBefore}, out.data(), sums.sink());
  sums.expect(example, {8, 24});
  Sums same_bytes_elsewhere(example.parameter);
  Transfer().read(example.parameter, {16, 32}, file, {.form = Form::hf, .origin = kBefore - 16}, out.data(),
                  same_bytes_elsewhere.sink());
  EXPECT_EQ(out, slice(example.hf, 16, 48)) << "the same bytes";
  auto moved = example;
  std::rotate(moved.hf.begin(), moved.hf.end() - 16, moved.hf.end());
  same_bytes_elsewhere.expect(moved, {16, 32});
}

TEST(Transfer, DigestsNothingWithoutASink) {
  auto const example = swapped(DType::BF16, {2, 3, 4});
  MemoryReader file(framed(example.hf));
  Bytes out(example.native.size());
  Transfer().read(example.parameter, {0, 2}, file, {.form = Form::hf, .origin = kBefore}, out.data(), {});
  EXPECT_EQ(out, example.native);
}

TEST(Transfer, ReadsEachByteOnceInBlocksOfBoundedSize) {
  for (auto const& example : {dense(DType::BF16, {1_MiB + 77}), swapped(DType::BF16, {3, 300, 4100})}) {
    MemoryReader file(framed(example.hf));
    Bytes out(example.native.size());
    Transfer().read(example.parameter, {0, example.units()}, file, {.form = Form::hf, .origin = kBefore}, out.data(),
                    {});
    auto next = kBefore;
    for (auto const& read : file.reads()) {
      EXPECT_EQ(read.begin, next);
      EXPECT_LE(read.size(), 64 * 8200);
      next = read.end;
    }
    EXPECT_EQ(next, kBefore + example.hf.size());
  }
}

TEST(Transfer, ReportsEveryBlockWhenItIsDoneAndStopsWhenTheReportThrows) {
  auto const example = dense(DType::U8, {3 * 512_KiB});
  MemoryReader file(framed(example.hf));
  Bytes out(example.native.size());
  std::uint64_t calls = 0;
  Transfer transfer([&](std::uint64_t bytes) {
    EXPECT_EQ(bytes, 512_KiB);
    if (++calls == 2) throw std::runtime_error("stop");
  });
  EXPECT_THROW(
      transfer.read(example.parameter, {0, 3 * 512_KiB}, file, {.form = Form::hf, .origin = kBefore}, out.data(), {}),
      std::runtime_error);
  EXPECT_EQ(file.reads().size(), 2U);
}

TEST(Transfer, PassesAReadersErrorOnAndReportsOnlyWhatCameBefore) {
  for (auto const& example : {dense(DType::BF16, {1_MiB}), converted({1_MiB}), swapped(DType::BF16, {2, 130, 4100})}) {
    MemoryReader file(framed(example.hf), "/a/damaged/file");
    file.fail_at(kBefore + 700'000);  // in the second block
    Bytes out(example.native.size());
    Reported reported;
    Transfer transfer(reported.hook());
    try {
      transfer.read(example.parameter, {0, example.units()}, file, {.form = Form::hf, .origin = kBefore}, out.data(),
                    {});
      ADD_FAILURE() << "no error";
    } catch (IoError const& error) {
      EXPECT_EQ(error.file, "/a/damaged/file");
      EXPECT_THAT(error.what(), HasSubstr("/a/damaged/file"));
    }
    EXPECT_EQ(reported.blocks, 1U);
    EXPECT_LE(reported.bytes, 700'000U);
    Sums sums(example.parameter);
    EXPECT_THROW(transfer.digest(example.parameter, {0, example.units()}, file, {.form = Form::hf, .origin = kBefore},
                                 sums.sink()),
                 IoError);
  }
}

TEST(Transfer, IsNotDisturbedByShortAndInterruptedReads) {
  auto const example = swapped(DType::BF16, {2, 33, 70});
  test::FaultyReader file(std::make_unique<MemoryReader>(framed(example.hf)),
                          {.most_bytes = 100, .interrupt_every = 3});
  Bytes out(example.native.size());
  Sums sums(example.parameter);
  Transfer().read(example.parameter, {0, 2}, file, {.form = Form::hf, .origin = kBefore}, out.data(), sums.sink());
  EXPECT_EQ(out, example.native);
  sums.expect(example, {0, 2});
}

TEST(Transfer, AFileThatEndsEarlyIsAFormatError) {
  auto const example = dense(DType::BF16, {100});
  auto bytes = framed(example.hf);
  bytes.resize(kBefore + 150);
  MemoryReader file(bytes);
  Bytes out(example.native.size());
  EXPECT_THROW(
      Transfer().read(example.parameter, {0, 100}, file, {.form = Form::hf, .origin = kBefore}, out.data(), {}),
      FormatError);
}

}  // namespace
}  // namespace rankslice
