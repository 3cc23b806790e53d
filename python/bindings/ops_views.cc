#include "ops_views.h"

#include <cstdint>

namespace octavo::bindings {

// DLPack's table of C functions, found as an attribute of the tensor's type (DLPack 1.2,
// DLPackExchangeAPI). Two are used: one lends a view, one names the stream of a device that the
// tensors' library works on. The others keep their place.
struct ExchangeTable {
  uint32_t major, minor;
  ExchangeTable* previous;
  void* allocate;
  void* export_managed;
  void* import_managed;
  int (*lend)(void* object, nb::dlpack::dltensor* out);
  int (*current_stream)(int32_t device_type, int32_t device, void** out);
};

namespace {

using nb::dlpack::dltensor;

#ifdef OCTAVO_HAS_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

// The table of a type, or null. The last few types are remembered (and kept alive): a process has
// torch.Tensor and torch.nn.Parameter, and looking an attribute up costs as much as all the rest.
const ExchangeTable* TableOf(PyTypeObject* type) {
  struct Known {
    PyTypeObject* type = nullptr;
    const ExchangeTable* table = nullptr;
  };
  constexpr int kKnown = 4;
  static Known known[kKnown];  // guarded by the GIL
  for (const Known& k : known) {
    if (k.type == type) return k.table;
  }
  const ExchangeTable* table = nullptr;
  PyObject* capsule =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  if (capsule != nullptr) {
    table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  if (table != nullptr && (table->major != 1 || table->lend == nullptr)) table = nullptr;
  for (Known& k : known) {
    if (k.type != nullptr) continue;
    Py_INCREF(type);
    k = {type, table};
    break;
  }
  return table;
}

bool ToDType(nb::dlpack::dtype t, DType* out) {
  using Code = nb::dlpack::dtype_code;
  struct Pair {
    Code code;
    uint8_t bits;
    DType dtype;
  };
  static constexpr Pair kPairs[] = {
      {Code::Float, 32, DType::kF32},
      {Code::Bfloat, 16, DType::kBF16},
      {Code::Float, 16, DType::kF16},
      {Code::Int, 32, DType::kI32},
      {Code::Int, 64, DType::kI64},
      {Code::UInt, 64, DType::kU64},
      {Code::UInt, 32, DType::kU32},
      {Code::UInt, 8, DType::kU8},
      {Code::Float8_E4M3FN, 8, DType::kF8E4M3},
  };
  for (const Pair& p : kPairs) {
    if (t.lanes == 1 && t.bits == p.bits && t.code == static_cast<uint8_t>(p.code)) {
      *out = p.dtype;
      return true;
    }
  }
  return false;
}

void Describe(const dltensor& t, Tensor* out) {
  TensorView& v = out->view;
  out->place = {t.device.device_type, t.device.device_id};
  if (out->place.cuda() && !kHasCuda) {
    out->fault =
        "lies on a CUDA device, and this build of Octavo has no CUDA ops: move it to the CPU, or "
        "install from source with pip install . -C cmake.define.OCTAVO_CUDA=ON";
    return;
  }
  if (!out->place.cuda() && out->place.type != nb::device::cpu::value) {
    out->fault = "lies on a device that has no ops: move it to the CPU or a CUDA device";
    return;
  }
  if (!ToDType(t.dtype, &v.dtype)) {
    out->fault =
        "has a dtype that no op takes: use float32, bfloat16, float16, float8_e4m3fn, int32, int64 "
        "or uint64, as the op's docstring says";
    return;
  }
  if (t.ndim > kMaxRank) {
    out->fault = "has more than 6 dimensions: view it with fewer";
    return;
  }
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.rank = t.ndim;
  int64_t dense = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    v.shape[i] = t.shape[i];
    v.stride[i] = t.strides == nullptr ? dense : t.strides[i];
    dense *= t.shape[i];
  }
}

}  // namespace

bool ReadTensor(nb::handle object, Tensor* out) noexcept {
  if (const ExchangeTable* table = TableOf(Py_TYPE(object.ptr()))) {
    dltensor lent;
    if (table->lend(object.ptr(), &lent) != 0) {
      PyErr_Clear();
      out->fault = "is no strided memory (meta or sparse): pass a dense tensor";
      return true;
    }
    out->table = table;
    Describe(lent, out);
    return true;
  }
  // An older torch, or an array of another library.
  if (!nb::try_cast(object, out->owner, /*convert=*/false) || !out->owner.is_valid()) return false;
  const nb::ndarray<>& a = out->owner;
  dltensor lent;
  lent.data = a.data();
  lent.byte_offset = 0;
  lent.device = {a.device_type(), a.device_id()};
  lent.ndim = static_cast<int32_t>(a.ndim());
  lent.dtype = a.dtype();
  lent.shape = const_cast<int64_t*>(a.shape_ptr());
  lent.strides = const_cast<int64_t*>(a.stride_ptr());
  Describe(lent, out);
  return true;
}

TensorView Call::View(const char* name, const Tensor& t) {
  if (t.fault != nullptr) throw nb::value_error((std::string(name) + " " + t.fault).c_str());
  if (first_ == nullptr) {
    first_ = name;
    place_ = t.place;
    table_ = t.table;
  } else if (!(place_ == t.place)) {
    throw nb::value_error((std::string(name) + " lies on " + t.place.Name() + ", but " + first_ +
                           " on " + place_.Name() + ": move them to one device")
                              .c_str());
  }
  return t.view;
}

cuda::Stream Call::CurrentStream() const {
  void* stream = nullptr;
  if (table_ != nullptr && table_->current_stream != nullptr) {
    if (table_->current_stream(place_.type, place_.index, &stream) == 0) {
      return static_cast<cuda::Stream>(stream);
    }
    PyErr_Clear();
  }
  // A torch from before the table existed.
  const nb::object current =
      nb::module_::import_("torch.cuda").attr("current_stream")(place_.index);
  return reinterpret_cast<cuda::Stream>(nb::cast<uintptr_t>(current.attr("cuda_stream")));
}

}  // namespace octavo::bindings
