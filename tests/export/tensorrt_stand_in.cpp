// Stands for TensorRT 8.6.1 so that TensorFlow 2.17 divides a graph into engines on a machine without it: a version, and a
// registry of no plugins. What builds or runs an engine gets nothing.
//   g++ -shared -fPIC -o libnvinfer.so.8.6.1 tensorrt_stand_in.cpp    (also as libnvinfer.so.8 and libnvinfer_plugin.so.8.6.1)
#include <cstdint>

namespace {

// The virtual functions of nvinfer1::IPluginRegistry in their order; those behind the third are never called.
struct NoPlugins {
  virtual bool registerCreator(void*, char const*) noexcept { return false; }
  virtual void* const* getPluginCreatorList(int32_t* count) const noexcept {
    *count = 0;
    return nullptr;
  }
  virtual void* getPluginCreator(char const*, char const*, char const*) noexcept { return nullptr; }
  virtual void* unused0() noexcept { return nullptr; }
  virtual void* unused1() noexcept { return nullptr; }
  virtual void* unused2() noexcept { return nullptr; }
  virtual void* unused3() noexcept { return nullptr; }
};

NoPlugins registry;

}  // namespace

extern "C" {
int32_t getInferLibVersion() noexcept { return 8601; }
void* getPluginRegistry() noexcept { return &registry; }
void* getBuilderPluginRegistry(int32_t) noexcept { return &registry; }
void* getLogger() noexcept { return nullptr; }
bool initLibNvInferPlugins(void*, char const*) noexcept { return true; }
void* createInferBuilder_INTERNAL(void*, int32_t) noexcept { return nullptr; }
void* createInferRuntime_INTERNAL(void*, int32_t) noexcept { return nullptr; }
void* createInferRefitter_INTERNAL(void*, void*, int32_t) noexcept { return nullptr; }
}
