#include "cli/interrupt.h"

#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>

namespace sluice::cli {
namespace {

namespace fs = std::filesystem;

// A signal handler may not walk directories. It writes the signal's number into a pipe; a thread
// reads it, cleans up and lets the signal do what it does by default. (Blocking the signals and
// waiting for them in a thread would not do: the BLAS has started threads of its own before main.)
int pipe_ends[2] = {-1, -1};
std::mutex mutex;
std::map<std::string, bool> watched;  // directory -> whether what is below it counts too

extern "C" void forward_signal(int signal) {
  const int saved = errno;
  const unsigned char number = static_cast<unsigned char>(signal);
  (void)!::write(pipe_ends[1], &number, 1);
  errno = saved;
}

void remove_temporaries(const fs::path& directory) {
  const std::string mark = fmt::format(".tmp.{}.", ::getpid());
  std::error_code ignored;
  for (fs::directory_iterator it(directory, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (it->path().filename().string().find(mark) != std::string::npos) {
      std::error_code gone;
      fs::remove(it->path(), gone);
    }
  }
}

void wait_for_signal() {
  unsigned char number = 0;
  while (::read(pipe_ends[0], &number, 1) != 1) {
    if (errno != EINTR) {
      return;
    }
  }
  {
    const std::lock_guard lock(mutex);
    for (const auto& [directory, recursive] : watched) {
      remove_temporaries(directory);
      std::error_code ignored;
      for (fs::recursive_directory_iterator it(directory, ignored), end;
           recursive && !ignored && it != end; it.increment(ignored)) {
        std::error_code gone;
        if (it->is_directory(gone)) {
          remove_temporaries(it->path());
        }
      }
    }
  }
  ::signal(number, SIG_DFL);
  ::kill(::getpid(), number);
}

void start() {
  if (::pipe(pipe_ends) != 0) {
    return;  // signals keep their default: the process ends, temporary files stay
  }
  std::thread(wait_for_signal).detach();
  struct sigaction action {};
  action.sa_handler = forward_signal;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction present {};
    if (::sigaction(signal, nullptr, &present) == 0 && present.sa_handler != SIG_IGN) {
      ::sigaction(signal, &action, nullptr);  // nohup's choice is respected
    }
  }
}

}  // namespace

void clean_up_on_interrupt(const std::string& path) {
  static std::once_flag once;
  std::call_once(once, start);
  std::error_code ignored;
  const bool is_directory = fs::is_directory(path, ignored);
  const fs::path directory = is_directory ? fs::path(path) : fs::path(path).parent_path();
  const std::lock_guard lock(mutex);
  watched[directory.empty() ? "." : directory.string()] |= is_directory;
}

}  // namespace sluice::cli
