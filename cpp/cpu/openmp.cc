#include "cpu/openmp.h"

#include <atomic>
#include <cstring>
#include <mutex>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace octavo::cpu {
namespace {

#if defined(__linux__)

constexpr int kPathSize = 4096;

struct Candidate {
  char path[kPathSize] = {};
  bool beside_torch = false;
};

// Wheels ship libgomp under their own file names (libgomp-a34b3233.so.1), so the stem is what
// counts. A process may hold several runtimes; torch's is the one whose team is warm.
int Consider(dl_phdr_info* info, size_t, void* data) {
  auto* best = static_cast<Candidate*>(data);
  const char* path = info->dlpi_name;
  if (path == nullptr || std::strlen(path) >= kPathSize) return 0;
  const char* slash = std::strrchr(path, '/');
  const char* file = slash == nullptr ? path : slash + 1;
  bool runtime = false;
  for (const char* stem : {"libgomp", "libiomp5", "libomp"}) {
    const size_t n = std::strlen(stem);
    runtime = runtime || (std::strncmp(file, stem, n) == 0 && (file[n] == '.' || file[n] == '-'));
  }
  if (!runtime) return 0;
  const bool beside_torch = std::strstr(path, "torch") != nullptr;
  if (best->path[0] != '\0' && !(beside_torch && !best->beside_torch)) return 0;
  std::strcpy(best->path, path);
  best->beside_torch = beside_torch;
  return 0;
}

bool Find(OpenMp* out) {
  static Candidate candidate;  // large for a stack; the caller holds a lock
  candidate = {};
  dl_iterate_phdr(Consider, &candidate);
  if (candidate.path[0] == '\0') return false;
  void* handle = dlopen(candidate.path, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return false;
  OpenMp found;
  found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(handle, "GOMP_parallel"));
  found.max_threads = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_max_threads"));
  found.in_parallel = reinterpret_cast<int (*)()>(dlsym(handle, "omp_in_parallel"));
  if (!found.parallel || !found.max_threads || !found.in_parallel) return false;
  *out = found;  // the handle stays open: the library may not go away under us
  return true;
}

#else

bool Find(OpenMp*) { return false; }

#endif

}  // namespace

const OpenMp& LoadedOpenMp() {
  // A runtime may be loaded after our first op (import order); a few later calls look again.
  constexpr int kLooks = 8;
  static const OpenMp none;
  static OpenMp runtime;  // written once, before `published` points to it
  static std::atomic<const OpenMp*> published{nullptr};
  static std::atomic<int> looks{0};
  static std::mutex mutex;
  if (const OpenMp* found = published.load(std::memory_order_acquire)) return *found;
  if (looks.load(std::memory_order_relaxed) >= kLooks) return none;
  // Nobody waits: a forked child might find the lock held by a thread that it does not have.
  std::unique_lock lock(mutex, std::try_to_lock);
  if (!lock.owns_lock()) return none;
  if (published.load(std::memory_order_relaxed) == nullptr) {
    looks.fetch_add(1, std::memory_order_relaxed);
    if (!Find(&runtime)) return none;
    published.store(&runtime, std::memory_order_release);
  }
  return runtime;
}

}  // namespace octavo::cpu
