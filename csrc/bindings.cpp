// mow._C: checks arrays, takes their addresses, lets go of Python's lock. mow/_C.pyi types it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "crc32c.h"
#include "lz4.h"
#include "mow_config.h"  // written by setup.py: what was built and why
#include "packed.h"
#include "philox.h"
#include "replay.h"
#include "slices.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace mow {
namespace {

using Int64Array = py::array_t<int64_t, py::array::c_style>;
using Frames = py::array_t<uint8_t, py::array::c_style>;
// (stored bytes, whether they are raw, their CRC32C)
using BlockTuple = std::tuple<py::bytes, bool, uint32_t>;

Shape shape_of(const py::array& array) { return Shape(array.shape(), array.shape() + array.ndim()); }

void check_rank(const std::string& name, const py::array& array, int64_t low) {
  check(array.ndim() >= low, name, "at least " + std::to_string(low) + " axes", shape_text(shape_of(array)));
}

// A plain block of memory that may be copied byte by byte.
void check_plain(const std::string& name, const py::array& array) {
  check((array.flags() & py::array::c_style) != 0, name, "a contiguous array", "strides between its entries");
  check(!array.dtype().attr("hasobject").cast<bool>(), name, "numbers", "Python objects");
}

Int64Array draw(uint64_t seed, uint64_t counter, uint32_t stream, const Int64Array& size, const Int64Array& head,
                int64_t capacity, int64_t num_windows, int64_t length, bool recent) {
  check(size.ndim() == 1, "size", "shape [K]", shape_text(shape_of(size)));
  check_shape("head", shape_of(size), shape_of(head));
  check_at_least("num_windows", 1, num_windows);
  Int64Array start({static_cast<py::ssize_t>(size.shape(0)), static_cast<py::ssize_t>(num_windows)});
  const WindowShape shape{size.shape(0), capacity, size.shape(0), num_windows, length};
  const int64_t *size_data = size.data(), *head_data = head.data();
  int64_t* start_data = start.mutable_data();
  {
    py::gil_scoped_release unlocked;
    draw_windows({seed, counter, stream}, shape, size_data, head_data, recent, start_data);
  }
  return start;
}

Field field_of(const std::string& index, const py::array& ring, py::array& out, const Shape& ring_shape,
               const Shape& out_shape) {
  check_rank("rings" + index, ring, 2);
  Shape expected = ring_shape;
  expected.insert(expected.end(), ring.shape() + 2, ring.shape() + ring.ndim());
  check_shape("rings" + index, expected, shape_of(ring));
  expected.erase(expected.begin(), expected.begin() + 2);
  expected.insert(expected.begin(), out_shape.begin(), out_shape.end());
  check_shape("out" + index, expected, shape_of(out));
  check(ring.dtype().equal(out.dtype()), "out" + index, py::str(ring.dtype()), py::str(out.dtype()));
  check_plain("rings" + index, ring);
  check_plain("out" + index, out);
  const int64_t num_steps = ring_shape[0] * ring_shape[1];
  return {static_cast<const std::byte*>(ring.data()), static_cast<std::byte*>(out.mutable_data()),
          num_steps == 0 ? 0 : static_cast<int64_t>(ring.nbytes()) / num_steps};
}

void gather(const std::vector<py::array>& rings, const Int64Array& rows, const Int64Array& start, int64_t length,
            std::vector<py::array> out) {
  check(!rings.empty() && rings.size() == out.size(), "out", "one array per ring, and at least one",
        std::to_string(rings.size()) + " rings and " + std::to_string(out.size()) + " arrays");
  check(start.ndim() == 2, "start", "shape [K, B]", shape_text(shape_of(start)));
  check_shape("rows", {start.shape(0)}, shape_of(rows));
  check_rank("rings[0]", rings[0], 2);
  const Shape ring_shape{rings[0].shape(0), rings[0].shape(1)};
  const WindowShape shape{ring_shape[0], ring_shape[1], start.shape(0), start.shape(1), length};
  std::vector<Field> fields;
  for (size_t i = 0; i < rings.size(); ++i) {
    const std::string index = "[" + std::to_string(i) + "]";
    fields.push_back(field_of(index, rings[i], out[i], ring_shape, {start.shape(0), start.shape(1), length}));
  }
  const int64_t *rows_data = rows.data(), *start_data = start.data();
  py::gil_scoped_release unlocked;
  gather_windows(fields, shape, rows_data, start_data);
}

using FloatArray = py::array_t<float, py::array::c_style>;

void check_vector(const std::string& name, const Int64Array& array, int64_t size) {
  check_shape(name, {size}, shape_of(array));
}

std::pair<Int64Array, Int64Array> draw_from_episodes(uint64_t seed, uint64_t counter, uint32_t stream,
                                                     const std::vector<Int64Array>& starts,
                                                     const std::vector<Int64Array>& rows, int64_t num_windows) {
  check_at_least("num_windows", 1, num_windows);
  check(starts.size() == rows.size(), "rows", std::to_string(starts.size()) + " arrays", std::to_string(rows.size()));
  std::vector<Episodes> files;
  for (size_t k = 0; k < starts.size(); ++k) {
    check(starts[k].ndim() == 1 && starts[k].size() > 0, "starts", "shape [E + 1]", shape_text(shape_of(starts[k])));
    check_vector("rows", rows[k], starts[k].size());
    files.push_back({starts[k].data(), rows[k].data(), starts[k].size() - 1});
  }
  const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(files.size()), num_windows};
  Int64Array start(shape), left(shape);
  int64_t *start_data = start.mutable_data(), *left_data = left.mutable_data();
  {
    py::gil_scoped_release unlocked;
    draw_slices({seed, counter, stream}, files, num_windows, start_data, left_data);
  }
  return {start, left};
}

void gather_from_rows(const std::vector<FloatArray>& files, const Int64Array& offset, const Int64Array& width,
                      const Int64Array& file, const Int64Array& start, int64_t length, std::vector<FloatArray> out) {
  const int64_t num_windows = start.size();
  check_vector("start", start, num_windows);
  check_vector("file", file, num_windows);
  const Shape ranges{static_cast<int64_t>(out.size()), static_cast<int64_t>(files.size())};
  check_shape("offset", ranges, shape_of(offset));
  check_shape("width", ranges, shape_of(width));
  std::vector<RowFile> row_files;
  for (const FloatArray& rows : files) {
    check(rows.ndim() == 2, "files", "shape [rows, width]", shape_text(shape_of(rows)));
    row_files.push_back({rows.data(), rows.shape(0), rows.shape(1)});
  }
  std::vector<Column> columns;
  for (size_t c = 0; c < out.size(); ++c) {
    check(out[c].ndim() == 3, "out", "shape [N, L, width]", shape_text(shape_of(out[c])));
    check_shape("out", {num_windows, length, out[c].shape(2)}, shape_of(out[c]));
    columns.push_back({offset.data(c, 0), width.data(c, 0), out[c].mutable_data(), out[c].shape(2)});
  }
  const int64_t *file_data = file.data(), *start_data = start.data();
  py::gil_scoped_release unlocked;
  gather_rows(row_files, columns, file_data, start_data, num_windows, length);
}

#if MOW_WITH_CUDA
// Addresses, not tensors: the extension does not know torch. The door in mow/replay/sampler.py does all the checks.
void gather_cuda(uintptr_t ring, uintptr_t out, int64_t step_bytes, uintptr_t rows, uintptr_t start, int64_t num_rows,
                 int64_t capacity, int64_t num_tasks, int64_t num_windows, int64_t length, int device,
                 uintptr_t stream) {
  const Field field{reinterpret_cast<const std::byte*>(ring), reinterpret_cast<std::byte*>(out), step_bytes};
  const char* error = nullptr;
  {
    py::gil_scoped_release unlocked;
    error = gather_windows_cuda(field, {num_rows, capacity, num_tasks, num_windows, length},
                                reinterpret_cast<const int64_t*>(rows), reinterpret_cast<const int64_t*>(start),
                                device, reinterpret_cast<void*>(stream));
  }
  if (error != nullptr) throw std::runtime_error(std::string("gather_windows_cuda: ") + error);
}
#endif

void set_num_threads(int num_threads) {
  check(num_threads >= 1 && num_threads <= 256, "num_threads", "1 to 256", std::to_string(num_threads));
  py::gil_scoped_release unlocked;  // waits for a running gather
  ThreadPool::shared().resize(num_threads);
}

// Frames reach the store as [..., frame_bytes]: their height and width are the door's business.
void check_frames(const std::string& name, const Shape& leading, const PackedStore& store, const py::array& frames) {
  Shape expected = leading;
  expected.push_back(store.frame_bytes());
  check_shape(name, expected, shape_of(frames));
}

// frames [R, frame_bytes], each in one piece, the rows as far apart as they are.
void append_frames(PackedStore& store, const py::array_t<uint8_t>& frames) {
  check_frames("frames", {store.num_rows()}, store, frames);
  check(frames.strides(1) == 1 || store.frame_bytes() == 1, "frames", "each frame in one piece of memory",
        "a stride of " + std::to_string(frames.strides(1)));
  const auto* data = reinterpret_cast<const std::byte*>(frames.data());
  const int64_t row_stride = frames.strides(0);
  py::gil_scoped_release unlocked;
  store.append(data, row_stride);
}

// A PendingGather and the array that it writes to.
struct PendingFrames {
  PendingGather gather;
  Frames out;
};

PendingFrames begin_gather(const PackedStore& store, const Int64Array& rows, const Int64Array& first, int64_t length,
                           Frames& out) {
  check(first.ndim() == 2, "first", "shape [K, B]", shape_text(shape_of(first)));
  check_shape("rows", {first.shape(0)}, shape_of(rows));
  check_frames("out", {first.shape(0), first.shape(1), length}, store, out);
  const WindowList windows{rows.data(), first.data(), first.shape(0), first.shape(1), length};
  auto* data = reinterpret_cast<std::byte*>(out.mutable_data());
  const auto begin = [&] {
    py::gil_scoped_release unlocked;
    return store.begin_gather(windows, data);
  };
  return {begin(), out};
}

void finish_gather(const PendingFrames& pending) {
  py::gil_scoped_release unlocked;
  pending.gather.finish();
}

BlockTuple block_of(const PackedStore& store, int64_t row, int64_t number) {
  const LooseBlock block = store.block(row, number);
  return {py::bytes(block.bytes.data(), block.bytes.size()), block.is_raw, block.crc};
}

Frames open_frames_of(const PackedStore& store, int64_t row) {
  const std::vector<std::byte> frames = store.open_frames(row);
  const py::ssize_t frame_bytes = store.frame_bytes();
  Frames array({static_cast<py::ssize_t>(frames.size()) / frame_bytes, frame_bytes});
  std::copy(frames.begin(), frames.end(), reinterpret_cast<std::byte*>(array.mutable_data()));
  return array;
}

void append_block_to(PackedStore& store, const std::vector<BlockTuple>& blocks) {
  std::vector<LooseBlock> loose;
  for (const auto& [bytes, is_raw, crc] : blocks) loose.push_back({std::string_view(bytes), is_raw, crc, nullptr});
  py::gil_scoped_release unlocked;
  store.append_block(loose);
}

uint32_t crc32c_of(const py::bytes& bytes, bool by_table) {
  const std::string_view text = bytes;
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return by_table ? crc32c_by_table(data, text.size()) : crc32c(data, text.size());
}

// Addresses of functions of liblz4.
void use_lz4(uintptr_t compress, uintptr_t decompress, uintptr_t decompress_first) {
  lz4().compress = reinterpret_cast<decltype(Lz4::compress)>(compress);
  lz4().decompress = reinterpret_cast<decltype(Lz4::decompress)>(decompress);
  lz4().decompress_first = reinterpret_cast<decltype(Lz4::decompress_first)>(decompress_first);
}

// std::system_error reaches Python as the OSError of its number.
void translate_system_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const std::system_error& error) {
    const auto number_and_text = py::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, number_and_text.ptr());
  }
}

void bind_packed_store(py::module_& module) {
  using py::arg;
  py::register_local_exception_translator(&translate_system_error);
  module.attr("block_steps") = kBlockSteps;
  module.def("use_lz4", &use_lz4, arg("compress"), arg("decompress"), arg("decompress_first"));
  module.def("crc32c", &crc32c_of, arg("data"), arg("by_table") = false);
  py::class_<PendingFrames>(module, "PendingFrames").def("finish", &finish_gather);
  py::class_<PackedStore>(module, "PackedStore")
      .def(py::init<int64_t, int64_t, int64_t>(), arg("num_rows"), arg("capacity"), arg("frame_bytes"))
      .def("spill_to", &PackedStore::spill_to, arg("folder"), arg("memory_limit"))
      .def("append", &append_frames, arg("frames").noconvert())
      .def("append_block", &append_block_to, arg("blocks"))
      .def("resume", &PackedStore::resume, arg("num_steps"))
      .def("begin_gather", &begin_gather, arg("rows").noconvert(), arg("first").noconvert(), arg("length"),
           arg("out").noconvert())
      .def_property_readonly("num_steps", &PackedStore::num_steps)
      .def_property_readonly("memory_bytes", &PackedStore::memory_bytes)
      .def_property_readonly("disk_bytes", &PackedStore::disk_bytes)
      .def_property_readonly("ratio", &PackedStore::ratio)
      .def("block_range", &PackedStore::block_range)
      .def("block_bytes", &block_of, arg("row"), arg("block"))
      .def("open_frames", &open_frames_of, arg("row"))
      .def("_flip_bit", &PackedStore::flip_bit, arg("row"), arg("block"));
}

std::vector<uint32_t> philox_words(uint32_t x, uint32_t y, uint32_t z, uint32_t w, uint64_t key) {
  const PhiloxWords words = philox({x, y, z, w}, key);
  return {words.x, words.y, words.z, words.w};
}

}  // namespace
}  // namespace mow

PYBIND11_MODULE(_C, module, py::mod_gil_not_used()) {
  using py::arg;
  module.doc() = "Draws and copies replay windows, and packs frames; called by mow.replay.";
  module.attr("with_cuda") = static_cast<bool>(MOW_WITH_CUDA);
  module.attr("cuda_archs") = MOW_CUDA_ARCHS;
  module.attr("nvcc_version") = MOW_NVCC_VERSION;
  module.attr("cuda_reason") = MOW_CUDA_REASON;
  module.def("philox", &mow::philox_words, arg("x"), arg("y"), arg("z"), arg("w"), arg("key"));
  // noconvert: a converted copy of `out` would swallow the result.
  module.def("draw_windows", &mow::draw, arg("seed"), arg("counter"), arg("stream"), arg("size").noconvert(),
             arg("head").noconvert(), arg("capacity"), arg("num_windows"), arg("length"), arg("recent"));
  module.def("gather_windows", &mow::gather, arg("rings").noconvert(), arg("rows").noconvert(),
             arg("start").noconvert(), arg("length"), arg("out").noconvert());
  module.def("draw_slices", &mow::draw_from_episodes, arg("seed"), arg("counter"), arg("stream"),
             arg("starts").noconvert(), arg("rows").noconvert(), arg("num_windows"));
  module.def("gather_rows", &mow::gather_from_rows, arg("files").noconvert(), arg("offset").noconvert(),
             arg("width").noconvert(), arg("file").noconvert(), arg("start").noconvert(), arg("length"),
             arg("out").noconvert());
  module.def("set_num_threads", &mow::set_num_threads, arg("num_threads"));
  module.def("num_threads", [] { return mow::ThreadPool::shared().num_threads(); });
  mow::bind_packed_store(module);
#if MOW_WITH_CUDA
  module.def("gather_windows_cuda", &mow::gather_cuda, arg("ring"), arg("out"), arg("step_bytes"), arg("rows"),
             arg("start"), arg("num_rows"), arg("capacity"), arg("num_tasks"), arg("num_windows"), arg("length"),
             arg("device"), arg("stream"));
#endif
}
