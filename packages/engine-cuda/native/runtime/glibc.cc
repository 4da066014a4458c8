// What the static libstdc++ and libgcc take from a glibc newer than 2.17, in terms of glibc 2.17: hidden definitions that the linker
// finds before glibc's. Only the linker's view changes; the version script keeps them out of the library's exports.
#if defined(__linux__) && defined(__x86_64__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// glibc 2.34 moved the functions of threads and of the loader into libc under a new version; the first one is still there and the same.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 takes the value of pthread_setspecific for a read
#define HEED_OLD(result, name, parameters, arguments)                 \
  extern "C" result heed_old_##name parameters;                       \
  __asm__(".symver heed_old_" #name "," #name "@GLIBC_2.2.5");        \
  extern "C" result name parameters { return heed_old_##name arguments; }
HEED_OLD(int, pthread_create, (pthread_t * id, const pthread_attr_t* a, void* (*run)(void*), void* argument), (id, a, run, argument))
HEED_OLD(int, pthread_detach, (pthread_t id), (id))
HEED_OLD(int, pthread_join, (pthread_t id, void** result), (id, result))
HEED_OLD(int, pthread_once, (pthread_once_t * once, void (*run)()), (once, run))
HEED_OLD(int, pthread_key_create, (pthread_key_t * key, void (*destroy)(void*)), (key, destroy))
HEED_OLD(int, pthread_setspecific, (pthread_key_t key, const void* value), (key, value))
HEED_OLD(void*, pthread_getspecific, (pthread_key_t key), (key))
HEED_OLD(int, pthread_rwlock_rdlock, (pthread_rwlock_t * lock), (lock))
HEED_OLD(int, pthread_rwlock_wrlock, (pthread_rwlock_t * lock), (lock))
HEED_OLD(int, pthread_rwlock_unlock, (pthread_rwlock_t * lock), (lock))
HEED_OLD(void*, dlopen, (const char* path, int flags), (path, flags))
HEED_OLD(int, dlclose, (void* library), (library))
HEED_OLD(void*, dlsym, (void* library, const char* name), (library, name))
HEED_OLD(char*, dlerror, (), ())
extern "C" int __pthread_key_create(pthread_key_t* key, void (*destroy)(void*)) { return heed_old_pthread_key_create(key, destroy); }

// 2.32: libstdc++ leaves out atomic operations where it is true. There are always threads here.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

// 2.18: destructors of thread_local variables, run when a thread ends. A list per thread, under a pthread key.
namespace {
struct Destructor {
  void (*run)(void*);
  void* object;
  Destructor* next;
};
pthread_key_t key;
pthread_once_t once = PTHREAD_ONCE_INIT;
void RunAll(void* list) {
  for (auto* at = static_cast<Destructor*>(list); at;) {
    Destructor* const next = at->next;
    at->run(at->object);
    free(at);
    at = next;
  }
}
}  // namespace
extern "C" int __cxa_thread_atexit_impl(void (*run)(void*), void* object, void*) {
  heed_old_pthread_once(&once, [] { heed_old_pthread_key_create(&key, RunAll); });
  auto* added = static_cast<Destructor*>(malloc(sizeof(Destructor)));
  if (added == nullptr) return -1;
  *added = {run, object, static_cast<Destructor*>(pthread_getspecific(key))};
  return heed_old_pthread_setspecific(key, added);
}

// 2.35: the unwinder's way from an address to its library's table. By the program headers, as before 2.35. The fields are the first
// of struct dl_find_object.
struct HeedFound {
  unsigned long long flags;
  void *start, *end;
  link_map* map;
  void* frames;
};
extern "C" int HeedFindObject(void* address, HeedFound* found) __asm__("_dl_find_object");  // newer headers declare it, older ones do not
extern "C" int HeedFindObject(void* address, HeedFound* found) {
  struct Search {
    uintptr_t address;
    HeedFound* found;
  } search = {reinterpret_cast<uintptr_t>(address), found};
  const auto visit = [](dl_phdr_info* info, size_t, void* data) {
    const Search& wanted = *static_cast<Search*>(data);
    bool inside = false;
    void* frames = nullptr;
    uintptr_t start = UINTPTR_MAX, end = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
      const auto& header = info->dlpi_phdr[i];
      const uintptr_t at = info->dlpi_addr + header.p_vaddr;
      if (header.p_type == PT_GNU_EH_FRAME) frames = reinterpret_cast<void*>(at);
      if (header.p_type != PT_LOAD) continue;
      inside |= wanted.address >= at && wanted.address < at + header.p_memsz;
      if (at < start) start = at;
      if (at + header.p_memsz > end) end = at + header.p_memsz;
    }
    if (!inside || frames == nullptr) return 0;
    *wanted.found = {0, reinterpret_cast<void*>(start), reinterpret_cast<void*>(end), nullptr, frames};
    return 1;
  };
  return dl_iterate_phdr(visit, &search) == 1 ? 0 : -1;
}
#endif
