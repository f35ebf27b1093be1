// One pool of threads for the whole process. Its threads start at the first job and live until the process ends,
// because starting a thread costs about as much as copying a window.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace mow {

class ThreadPool {
 public:
  static ThreadPool& shared() { return *slot(); }

  int num_threads() const { return num_threads_; }

  // The calling thread counts as one of them.
  void resize(int num_threads) {
    std::lock_guard<std::mutex> turn(turn_);
    stop();
    num_threads_ = num_threads;
  }

  // Calls work(0) ... work(num_items - 1), each once, in no fixed order; returns when all are done. Callers on several
  // threads take turns. `work` must not throw and must not call run.
  void run(int64_t num_items, const std::function<void(int64_t)>& work) {
    std::lock_guard<std::mutex> turn(turn_);
    run_now(num_items, work);
  }

  // The same unless another job runs: then returns false at once, and no item was done.
  bool try_run(int64_t num_items, const std::function<void(int64_t)>& work) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (turn.owns_lock()) run_now(num_items, work);
    return turn.owns_lock();
  }

 private:
  explicit ThreadPool(int num_threads) : num_threads_(num_threads) {}

  // Under turn_.
  void run_now(int64_t num_items, const std::function<void(int64_t)>& work) {
    start();
    {
      std::lock_guard<std::mutex> lock(state_);
      work_ = &work;
      num_items_ = num_items;
      next_item_ = 0;
      num_busy_ = workers_.size();
      ++round_;
    }
    wake_.notify_all();
    take_items();
    std::unique_lock<std::mutex> lock(state_);
    done_.wait(lock, [this] { return num_busy_ == 0; });
  }

  // Never destroyed: at process exit the workers may still wait on these locks.
  static ThreadPool*& slot() {
    static ThreadPool* pool = create();
    return pool;
  }

  // Two to four threads fill the memory bandwidth of the machines that we measured; more would only take cores from
  // the simulators.
  static ThreadPool* create() {
    // A forked child inherits the pool's memory but none of its threads, and perhaps a locked lock: it gets a new pool.
    pthread_atfork(nullptr, nullptr, [] { slot() = new ThreadPool(slot()->num_threads_); });
    return new ThreadPool(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 4));
  }

  void start() {
    while (static_cast<int>(workers_.size()) < num_threads_ - 1) {
      workers_.emplace_back([this, seen = round_] { serve(seen); });
    }
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(state_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
  }

  void serve(int64_t seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(state_);
        wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
        if (stopping_) return;
        seen = round_;
      }
      take_items();
      std::lock_guard<std::mutex> lock(state_);
      if (--num_busy_ == 0) done_.notify_one();
    }
  }

  void take_items() {
    for (int64_t item = next_item_++; item < num_items_; item = next_item_++) (*work_)(item);
  }

  std::mutex turn_;  // held by the caller whose job runs
  std::atomic<int> num_threads_;
  std::vector<std::thread> workers_;

  std::mutex state_;  // guards everything below but next_item_
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t num_items_ = 0;
  std::atomic<int64_t> next_item_{0};
  size_t num_busy_ = 0;
  int64_t round_ = 0;  // counts jobs, so that a worker takes part in each once
  bool stopping_ = false;
};

}  // namespace mow
