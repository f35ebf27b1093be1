#include "lz4.h"

#include <dlfcn.h>

namespace mow {
namespace {

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

Lz4 open_library() {
#if defined(__APPLE__)
  constexpr const char* kNames[] = {"liblz4.1.dylib", "/opt/homebrew/lib/liblz4.1.dylib",
                                    "/usr/local/lib/liblz4.1.dylib"};
  constexpr const char* kRemedy = "brew install lz4";
#else
  constexpr const char* kNames[] = {"liblz4.so.1"};
  constexpr const char* kRemedy = "apt install liblz4-1";
#endif
  Lz4 lz4;
  void* library = nullptr;
  for (const char* name : kNames) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    lz4.missing = std::string("cannot open ") + kNames[0] + ": `" + kRemedy + "`";
  } else if (!find(library, "LZ4_compress_default", lz4.compress) ||
             !find(library, "LZ4_decompress_safe", lz4.decompress) ||
             !find(library, "LZ4_decompress_safe_partial", lz4.decompress_first)) {
    lz4.missing = std::string(kNames[0]) + " lacks a function of LZ4 1.8.3 or newer: `" + kRemedy + "`";
  }
  return lz4;
}

}  // namespace

const Lz4& lz4() {
  static const Lz4 library = open_library();
  return library;
}

}  // namespace mow
