#include "cpu/threads.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace r1 {
namespace {

struct Job {
    int64_t count;
    const std::function<void(int64_t)>* task;
    std::atomic<int64_t> next{0};
    std::mutex failing;
    std::exception_ptr error;

    // Take tasks until none is left.
    void work() {
        for (int64_t number; (number = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            try {
                (*task)(number);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(failing);
                if (!error) error = std::current_exception();
                next = count;
            }
        }
    }
};

// GNU's and LLVM's OpenMP run a function on a team through this entry point. PyTorch's wheel loads a library of its own
// under another name; linking against one would bring a second team. Hence it is looked up, once.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel openmp() {
    static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

// Threads that sleep between jobs, for where there is no OpenMP.
class Pool {
public:
    void run(Job& job, int num_threads) {
        const std::lock_guard<std::mutex> one(one_job_);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(threads_.size()) < num_threads - 1) {
                const auto number = static_cast<int>(threads_.size());
                threads_.emplace_back([this, number] { serve(number); });
            }
            job_ = &job;
            wanted_ = running_ = num_threads - 1;
            jobs_++;
        }
        begin_.notify_all();
        job.work();
        std::unique_lock<std::mutex> lock(mutex_);
        end_.wait(lock, [this] { return running_ == 0; });
        job_ = nullptr;
    }

private:
    void serve(int number) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            begin_.wait(lock, [&] { return jobs_ != seen; });
            seen = jobs_;
            if (number >= wanted_) continue;
            Job* job = job_;
            lock.unlock();
            job->work();
            lock.lock();
            if (--running_ == 0) end_.notify_one();
        }
    }

    std::mutex one_job_, mutex_;
    std::condition_variable begin_, end_;
    std::vector<std::thread> threads_;
    Job* job_ = nullptr;
    int wanted_ = 0, running_ = 0;
    uint64_t jobs_ = 0;
};

// Never destroyed: its threads wait until the process ends. A forked child has none of them and gets a new pool.
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!current || owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

}  // namespace

void run_tasks(int64_t count, int num_threads, const std::function<void(int64_t)>& task) {
    Job job;
    job.count = count;
    job.task = &task;
    num_threads = static_cast<int>(std::min<int64_t>(num_threads, count));
    if (num_threads <= 1)
        job.work();
    else if (openmp())
        openmp()([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(num_threads), 0);
    else
        pool().run(job, num_threads);
    if (job.error) std::rethrow_exception(job.error);
}

void run_ranges(int64_t count, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& task) {
    const int64_t each = std::max(grain, (count + 4 * num_threads - 1) / (4 * num_threads));
    run_tasks((count + each - 1) / each, num_threads,
              [&](int64_t number) { task(number * each, std::min(count, (number + 1) * each)); });
}

}  // namespace r1
