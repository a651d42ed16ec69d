// Elements from the standard input to the standard output, for test_dtypes.py:
//   convert_elements FROM TO
//       converted
//   convert_elements SCALES TO ROWS COLUMNS FIRST_ROW FIRST_COLUMN BOX_ROWS BOX_COLUMNS
//       the input is a matrix of F8_E4M3 codes, then its block scales, of type SCALES; a box of it is dequantised

#include <iostream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "rankslice/error.hpp"

#include "transform/convert.hpp"
#include "transform/dequantise.hpp"

namespace {

using namespace rankslice;
using Bytes = std::vector<std::byte>;

Bytes read_input() {
  std::string const input{std::istreambuf_iterator<char>(std::cin), {}};
  auto const bytes = std::as_bytes(std::span(input));
  return {bytes.begin(), bytes.end()};
}

Bytes converted(Bytes const& in, DType from, DType to) {
  Bytes out(in.size() / element_bytes(from) * element_bytes(to));
  convert(in, from, out, to);
  return out;
}

Bytes dequantised(Bytes const& in, DType scales, DType to, std::vector<std::uint64_t> const& sizes) {
  auto const rows = sizes.at(0), columns = sizes.at(1), first_row = sizes.at(2), first_column = sizes.at(3);
  auto const box_rows = sizes.at(4), box_columns = sizes.at(5);
  Bytes out(box_rows * box_columns * element_bytes(to));
  dequantise({.data = in.data() + first_row * columns + first_column,
              .rows = box_rows,
              .columns = box_columns,
              .stride = columns},
             first_row, first_column,
             {.data = in.data() + rows * columns, .dtype = scales, .columns = (columns + 127) / 128}, out.data(), to);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 9) return 2;
  try {
    auto const from = parse_dtype(argv[1]);
    auto const to = parse_dtype(argv[2]);
    if (!from || !to) return 2;
    std::vector<std::uint64_t> sizes;
    for (int i = 3; i < argc; ++i) sizes.push_back(std::stoull(argv[i]));
    auto const in = read_input();
    auto const out = sizes.empty() ? converted(in, *from, *to) : dequantised(in, *from, *to, sizes);
    std::cout.write(reinterpret_cast<char const*>(out.data()), static_cast<std::streamsize>(out.size()));
    return 0;
  } catch (Error const& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.code);
  }
}
