// libtorch's process groups (c10d), which have no bindings in tch: groups over gloo and NCCL, their collectives, and the reducer of
// gradients. Nothing here throws into Rust: see messages.h. c10d.rs has the contracts.

#define USE_C10D_GLOO  // else libtorch's header of it is empty
#ifdef TERCET_WITH_NCCL
#define USE_C10D_NCCL
#endif

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#ifdef TERCET_WITH_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "messages.h"

namespace {

using tercet::free_message;
using tercet::guarded;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;
using StoreHandle = c10::intrusive_ptr<c10d::Store>;

struct Group {
    StoreHandle store;
    c10::intrusive_ptr<c10d::Backend> cpu;
    c10::intrusive_ptr<c10d::Backend> cuda;
    c10::intrusive_ptr<c10d::ProcessGroup> both;  // what the reducer asks for

    c10d::Backend& of(const at::Tensor& tensor) const {
        const auto& backend = tensor.is_cuda() ? cuda : cpu;
        TORCH_CHECK(backend, "the process group was made for the CPU alone, and this tensor is on ", tensor.device());
        return *backend;
    }
};

// A collective under way, with the tensors that it reads and writes.
struct Work {
    c10::intrusive_ptr<c10d::Work> work;
    std::vector<at::Tensor> held;
    bool waited = false;

    void wait() {
        waited = true;
        TORCH_CHECK(work->wait(), "the collective was aborted");
    }
};

// While a group is made, libtorch prints with addresses of code what it throws as well.
class Quiet {
  public:
    Quiet() : before_(FLAGS_caffe2_log_level) {
        if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    }
    ~Quiet() { FLAGS_caffe2_log_level = before_; }

  private:
    const int before_;
};

}  // namespace

extern "C" {

// `RawOptions` of c10d.rs, in the same layout.
struct TercetGroupOptions {
    const char* host;
    const char* prefix;   // of all keys in the store
    const char* address;  // this host's, as the others reach it; null: as gloo finds it
    int64_t timeout;      // milliseconds
    int32_t rank;
    int32_t size;
    int32_t port;
    int32_t cuda;     // this process's GPU; -1: none
    int32_t serve;    // whether this process is where the others meet
    int32_t by_nccl;  // CUDA tensors travel by NCCL; else by gloo
};

}  // extern "C"

namespace {

// The options of a group, for a thread that may outlive the call.
struct Options {
    std::string host, prefix, address;
    bool has_address, serve, by_nccl;
    int rank, size, port, cuda;
    Milliseconds timeout;

    explicit Options(const TercetGroupOptions& o)
        : host(o.host), prefix(o.prefix), address(o.address ? o.address : ""), has_address(o.address), serve(o.serve),
          by_nccl(o.by_nccl), rank(o.rank), size(o.size), port(o.port), cuda(o.cuda), timeout(o.timeout) {}
};

// Who is who, before anybody waits for a connection: the same size in all, each rank once, and all of them here. An error of one
// process is left for the others, which would wait for it in vain.
void meet(c10d::Store& store, const Options& options, Clock::time_point end) {
    const std::string rank = std::to_string(options.rank), size = std::to_string(options.size);
    const auto refuse = [&](const std::string& why) {
        store.set("refused", why);
        TORCH_CHECK(false, why);
    };
    const std::string theirs = store.compareSet("size", "", size);
    if (theirs != size) refuse("WORLD_SIZE is " + size + " in process " + rank + " and " + theirs + " in another");
    if (store.add("rank/" + rank, 1) != 1) refuse("two processes have RANK " + rank);
    store.set("here/" + rank, "1");
    if (store.add("count", 1) == options.size) store.set("all", "1");

    for (auto pause = Milliseconds(1); !store.check({"all"}); pause = std::min(2 * pause, Milliseconds(100))) {
        if (store.check({"refused"})) TORCH_CHECK(false, store.get_to_str("refused"));
        if (Clock::now() >= end) {
            std::string missing;
            for (int q = 0; q < options.size; ++q)
                if (!store.check({"here/" + std::to_string(q)})) missing += (missing.empty() ? "" : ", ") + std::to_string(q);
            TORCH_CHECK(false, "after ", options.timeout.count(), " ms these ranks of ", size, " have not come: ", missing);
        }
        std::this_thread::sleep_for(pause);
    }
}

std::unique_ptr<Group> open_group(const Options& options, Clock::time_point end) {
    c10d::TCPStoreOptions of_store;
    of_store.port = static_cast<uint16_t>(options.port);
    of_store.isServer = options.serve;
    of_store.waitWorkers = false;  // `meet` says who is missing
    of_store.timeout = options.timeout;
    of_store.multiTenant = true;  // several groups of one process meet at one port
    auto tcp = c10::make_intrusive<c10d::TCPStore>(options.host, of_store);
    auto group = std::make_unique<Group>();
    group->store = c10::make_intrusive<c10d::PrefixStore>(options.prefix, tcp);
    group->store->setTimeout(options.timeout);
    meet(*group->store, options, end);

    using Gloo = c10d::ProcessGroupGloo;
    const auto of_gloo =
        options.has_address ? Gloo::Options::create(options.timeout) : Gloo::Options::create_default(options.timeout);
    if (options.has_address)
        of_gloo->devices.push_back(Gloo::createDeviceForHostname(options.address, c10d::getDefaultGlooLazyInit()));
    const auto part = [&](const char* name) { return c10::make_intrusive<c10d::PrefixStore>(name, group->store); };
    group->cpu = c10::make_intrusive<Gloo>(part("cpu"), options.rank, options.size, of_gloo);
    if (options.cuda >= 0 && !options.by_nccl) group->cuda = group->cpu;
    if (options.cuda >= 0 && options.by_nccl) {
#ifdef TERCET_WITH_NCCL
        const auto of_nccl = c10d::ProcessGroupNCCL::Options::create();
        of_nccl->timeout = options.timeout;
        group->cuda = c10::make_intrusive<c10d::ProcessGroupNCCL>(part("cuda"), options.rank, options.size, of_nccl);
#else
        TORCH_CHECK(false, "this build has no NCCL");
#endif
    }
    using Type = c10d::ProcessGroup::BackendType;
    group->both = c10::make_intrusive<c10d::ProcessGroup>(group->store, options.rank, options.size);
    // Before the backends, to which it is handed on: a backend's own would be overwritten.
    if (group->cuda) group->both->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(options.cuda)));
    group->both->setBackend(at::kCPU, Type::GLOO, group->cpu);
    if (group->cuda) group->both->setBackend(at::kCUDA, options.by_nccl ? Type::NCCL : Type::GLOO, group->cuda);
    group->both->setDefaultBackend(Type::GLOO);
    return group;
}

}  // namespace

extern "C" {

// Meets the other processes and connects to each.
char* tercet_group_open(Group** result, const TercetGroupOptions* raw) {
    return guarded([&] {
        // libtorch waits without a timeout for the answer of whatever listens at the port. A thread of its own can be left behind.
        std::promise<std::unique_ptr<Group>> promise;
        auto opened = promise.get_future();
        const auto end = Clock::now() + Milliseconds(raw->timeout);
        std::thread([promise = std::move(promise), options = Options(*raw), end]() mutable {
            const Quiet quiet;
            try {
                promise.set_value(open_group(options, end));
            } catch (...) {
                promise.set_exception(std::current_exception());
            }
        }).detach();
        // `open_group` itself says more, if it ends.
        const auto late = end + Milliseconds(500);
        TORCH_CHECK(opened.wait_until(late) == std::future_status::ready, "after ", raw->timeout,
                    " ms there is no answer: another program may have the port, or a process hangs");
        *result = opened.get().release();
    });
}

// Waits for what is under way, for the timeout at most; with `abort` NCCL's collectives end at once.
void tercet_group_close(Group* group, bool abort) {
    free_message(guarded([&] {
        const std::unique_ptr<Group> owned(group);
        if (abort && group->cuda && group->cuda != group->cpu) group->cuda->abort();
    }));
}

// `out` [W n, ..] becomes the processes' `in` [n, ..], in the order of ranks.
char* tercet_all_gather(const Group* group, const at::Tensor* out, const at::Tensor* in, Work** work) {
    return guarded([&] {
        at::Tensor to = *out, from = *in;
        *work = new Work{group->of(from)._allgather_base(to, from), {to, from}};
    });
}

// `out` [n, ..] becomes the sum over processes of rows [rank n, rank n + n) of `in` [W n, ..].
char* tercet_reduce_scatter(const Group* group, const at::Tensor* out, const at::Tensor* in, Work** work) {
    return guarded([&] {
        at::Tensor to = *out, from = *in;
        *work = new Work{group->of(from)._reduce_scatter_base(to, from), {to, from}};
    });
}

// `tensor` becomes its sum over processes, or with `maximum` its maximum.
char* tercet_all_reduce(const Group* group, const at::Tensor* tensor, bool maximum, Work** work) {
    return guarded([&] {
        std::vector<at::Tensor> tensors{*tensor};
        c10d::AllreduceOptions options;
        options.reduceOp = maximum ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
        *work = new Work{group->of(*tensor).allreduce(tensors, options), tensors};
    });
}

// `tensor` becomes that of process `root`.
char* tercet_broadcast(const Group* group, const at::Tensor* tensor, int32_t root, Work** work) {
    return guarded([&] {
        std::vector<at::Tensor> tensors{*tensor};
        c10d::BroadcastOptions options;
        options.rootRank = root;
        *work = new Work{group->of(*tensor).broadcast(tensors, options), tensors};
    });
}

// CPU tensors have their values afterwards. For CUDA tensors the current stream waits, and the host does not.
char* tercet_work_wait(Work* work) {
    return guarded([&] { work->wait(); });
}

bool tercet_work_is_done(Work* work) {
    bool done = true;
    free_message(guarded([&] { done = work->work->isCompleted(); }));
    return done;
}

void tercet_work_drop(Work* work) {
    free_message(guarded([&] {
        const std::unique_ptr<Work> owned(work);
        // gloo's own threads hold its tensors until it is done. Those of NCCL may be given to others when they are let go.
        const bool on_device = std::any_of(work->held.begin(), work->held.end(), [](const auto& t) { return t.is_cuda(); });
        if (on_device && !work->waited) work->wait();
    }));
}

// Averages the gradients that backward leaves in `grad` while it is running: what DistributedDataParallel is made of. Buckets have
// at most `bytes`, that of the last layers `first_bytes`.
char* tercet_reducer_new(c10d::Reducer** result, const Group* group, const at::Tensor* const* variables, size_t count,
                         size_t first_bytes, size_t bytes) {
    return guarded([&] {
        std::vector<at::Tensor> params;
        for (size_t i = 0; i < count; ++i) params.push_back(*variables[i]);
        const std::vector<bool> sparse(count, false);
        auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(params, {first_bytes, bytes}, sparse, {}, {}));
        std::reverse(buckets.begin(), buckets.end());  // backward comes to the last layers first
        // Views of buckets as gradients would make tch's `zero_grad` an error.
        *result = new c10d::Reducer(std::move(params), std::move(buckets), group->both, sparse, static_cast<int64_t>(bytes),
                                    /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/false, /*param_names=*/{},
                                    static_cast<int64_t>(first_bytes), /*skip_all_reduce_unused_params=*/false,
                                    /*use_python_reducer=*/false, /*bucket_bytes_cap_list=*/{});
    });
}

// Makes ready for the backward pass of the forward pass that follows.
char* tercet_reducer_prepare(c10d::Reducer* reducer) {
    return guarded([&] {
        reducer->prepare_for_forward();
        reducer->rebuild_buckets();
        reducer->prepare_for_backward({});
    });
}

void tercet_reducer_drop(c10d::Reducer* reducer) {
    free_message(guarded([&] {
        const std::unique_ptr<c10d::Reducer> owned(reducer);
        reducer->remove_autograd_hooks();
    }));
}

// Sets sizes to that of a ProcessGroupGloo as this file was compiled, and to the room that libtorch asks for where it makes one
// itself: with other declarations of gloo than libtorch's own they would differ.
char* tercet_gloo_sizes(const Group* group, size_t sizes[2]) {
    return guarded([&] {
        const auto options = group->cpu->getBackendOptions();
        const auto alone = c10::make_intrusive<c10d::PrefixStore>("sizes/" + std::to_string(group->cpu->getRank()), group->store);
        const auto made = group->cpu->merge(alone, options, 0, 1);
        sizes[0] = sizeof(c10d::ProcessGroupGloo);
        sizes[1] = malloc_usable_size(made.get());
    });
}

}  // extern "C"
