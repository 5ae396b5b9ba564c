// An autograd node whose backward is a Rust closure, and the few other things of libtorch that tch does not offer.
// Nothing here throws into Rust: see messages.h.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#include "messages.h"

#ifdef TERCET_WITH_TORCH_CUDA
namespace at::cuda {
int warp_size();
}
#endif

namespace {

using tercet::free_message;
using tercet::guarded;
using tercet::message_of;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// A new node's owner, as libtorch owns nodes: since 2.13 it counts their references in themselves; before, a shared_ptr did,
// with a deleter that takes a long graph apart without recursion. Without memory for its count a shared_ptr deletes it.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
template <class T> c10::intrusive_ptr<T> owner_of(T* node) { return c10::intrusive_ptr<T>::unsafe_steal_from_new(node); }
#else
template <class T> std::shared_ptr<T> owner_of(T* node) { return std::shared_ptr<T>(node, torch::autograd::deleteNode); }
#endif

// Rust's side of a node; see autograd.rs for the contract. `apply` puts new tensors, or null, into `grads`, and returns
// null or a message.
struct RustBackward {
    void* state;
    char* (*apply)(void* state, at::Tensor* upstream, at::Tensor** saved, const uint8_t* needed, bool keep_graph, at::Tensor** grads);
    void (*drop)(void* state);
};

// A node whose backward is the Rust closure of `rust`.
class RustNode : public Node {
  public:
    RustNode(std::string name, RustBackward rust) : name_(std::move(name)), rust_(rust) {}
    ~RustNode() override { release(); }

    void save(const at::Tensor& tensor) { saved_.emplace_back(tensor, /*is_output=*/false); }
    std::string name() const override { return name_; }

    // Called by the engine once the graph is no longer needed.
    void release_variables() override {
        if (runs_here()) return;  // called by the closure that runs now: what it uses is freed with the node
        std::lock_guard<std::mutex> lock(mutex_);
        for (auto& saved : saved_) saved.reset_data();
        release();
    }

    variable_list apply(variable_list&& upstream) override {
        // The closure is in use, and this thread holds the lock already.
        TORCH_CHECK(!runs_here(), "the backward pass of ", name_, " ran backward through the graph that it belongs to");
        // Two threads may run backward through one graph.
        std::lock_guard<std::mutex> lock(mutex_);
        TORCH_CHECK(rust_.state, torch::autograd::ERR_BACKWARD_TWICE);
        const size_t count = num_outputs();
        variable_list grads(count);
        if (!upstream[0].defined()) return grads;

        std::vector<at::Tensor> saved;
        for (auto& variable : saved_) saved.push_back(variable.unpack());  // throws if changed in place since
        std::vector<at::Tensor*> saved_pointers;
        for (auto& tensor : saved) saved_pointers.push_back(&tensor);
        std::vector<uint8_t> needed;
        for (size_t i = 0; i < count; ++i) needed.push_back(task_should_compute_output(i));
        std::vector<at::Tensor*> results(count, nullptr);
        char* error;
        {
            at::AutoGradMode no_grad(false);
            runner_ = std::this_thread::get_id();
            error = rust_.apply(rust_.state, &upstream[0], saved_pointers.data(), needed.data(),
                                torch::autograd::get_current_graph_task_keep_graph(), results.data());
            runner_ = std::thread::id();
        }
        for (size_t i = 0; i < count; ++i)
            if (results[i]) {
                grads[i] = std::move(*results[i]);
                delete results[i];
            }
        if (error) {
            const std::unique_ptr<char, void (*)(char*)> freed(error, free_message);
            throw std::runtime_error(name_ + ": " + error);
        }
        return at::GradMode::is_enabled() ? refuse_further(std::move(grads), upstream[0], saved) : grads;
    }

  private:
    bool runs_here() const { return runner_ == std::this_thread::get_id(); }

    // Makes differentiating through the gradients an error: plain tensors would give a silent zero. The error has edges
    // to all that the gradient depends on: without them, the engine would not pass it on the way to chosen inputs
    // (torch's own DelayedError has none). Asking for the graph alone (create_graph) is no error.
    variable_list refuse_further(variable_list&& grads, const at::Tensor& upstream, const variable_list& saved) {
        torch::autograd::edge_list edges = next_edges();
        for (const auto& edge : torch::autograd::collect_next_edges(upstream, saved)) edges.push_back(edge);
        const auto refuse = owner_of(new torch::autograd::Error(
            "differentiating through the gradient of " + name_ + " is not implemented: the loss is differentiable once",
            std::move(edges)));
        for (auto& grad : grads)
            if (grad.defined()) {
                grad = grad.detach();
                torch::autograd::set_history(grad, refuse);
            }
        return std::move(grads);
    }

    void release() {
        if (!rust_.state) return;
        void* state = rust_.state;
        rust_.state = nullptr;
        rust_.drop(state);
    }

    std::string name_;
    RustBackward rust_;
    std::vector<SavedVariable> saved_;
    std::atomic<std::thread::id> runner_{};  // the thread that is in `apply`
};

}  // namespace

extern "C" {

// Sets *result to a tensor with the data of `output` whose backward runs `rust`. Takes `rust.state`, also if it fails.
char* tercet_attach(at::Tensor** result, const at::Tensor* output, at::Tensor* const* inputs, size_t input_count,
                    at::Tensor* const* saved, size_t saved_count, const char* name, RustBackward rust) {
#ifdef TERCET_WITH_TORCH_CUDA
    // Keeps libtorch_cuda linked: in a function of its own the reference would be dropped with that function.
    static volatile auto keep = &at::cuda::warp_size;
    (void)keep;
#endif
    RustNode* made;
    try {
        made = new RustNode(name, rust);
    } catch (...) {
        rust.drop(rust.state);
        return message_of("out of memory");
    }
    return guarded([&] {
        const auto node = owner_of(made);
        variable_list variables;
        for (size_t i = 0; i < input_count; ++i) variables.push_back(*inputs[i]);
        at::Tensor out = output->detach();
        if (at::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(variables)) {
            for (size_t i = 0; i < saved_count; ++i) node->save(*saved[i]);
            node->set_next_edges(torch::autograd::collect_next_edges(variables));
            torch::autograd::set_history(out, node);
        }
        *result = new at::Tensor(std::move(out));
    });
}

void tercet_free_message(char* message) { free_message(message); }

// What Rust returns as a message if it has no memory for one.
char* tercet_no_memory_for_a_message() { return tercet::no_memory_for_a_message; }

bool tercet_grad_enabled() { return at::GradMode::is_enabled(); }

// Whether sizes and strides say where a tensor's elements are: not in the five sparse layouts, MKL-DNN and nested ones.
bool tercet_is_strided(const at::Tensor* tensor) { return tensor->layout() == at::kStrided && !tensor->is_nested(); }

// Sets *result to a tensor over `data`; calls `drop(owner)` once, when its last user is gone, or here if it fails.
char* tercet_from_blob(at::Tensor** result, void* data, const int64_t* sizes, size_t dims, int8_t scalar_type, void* owner,
                       void (*drop)(void*)) {
    return guarded([&] {
        // Drops once in any case, even if libtorch throws when it holds the deleter already: the last copy of it drops.
        std::shared_ptr<void> held(owner, drop);  // drops also if there is no memory for its count
        auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type));
        auto deleter = [held = std::move(held)](void*) mutable { held.reset(); };
        *result = new at::Tensor(at::for_blob(data, at::IntArrayRef(sizes, dims)).deleter(std::move(deleter)).options(options).make_tensor());
    });
}

// Sets *stream to the stream that PyTorch's own kernels on this CUDA device would use now.
char* tercet_current_stream(int device, void** stream) {
    return guarded([&] {
        c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
        *stream = guard.getStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))).native_handle();
    });
}

// Runs `run(state, stream)` with a stream of PyTorch's pool as the current one of this CUDA device.
char* tercet_on_pool_stream(int device, void (*run)(void* state, void* stream), void* state) {
    return guarded([&] {
        c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
        const c10::Device on(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
        const c10::Stream stream = guard.getStreamFromGlobalPool(on);
        const c10::Stream before = guard.exchangeStream(stream);
        run(state, stream.native_handle());  // does not throw
        guard.exchangeStream(before);
    });
}

}  // extern "C"
