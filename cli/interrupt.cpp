#include "cli/interrupt.h"

#include <dirent.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

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

// Not std::filesystem's iterators: LibTorch's own binaries bring those of another compiler version.
void remove_temporaries(const std::string& directory, bool recursive) {
  const std::string mark = fmt::format(".tmp.{}.", ::getpid());
  DIR* const listing = ::opendir(directory.c_str());
  if (listing == nullptr) {
    return;
  }
  std::vector<std::string> below;
  while (const dirent* entry = ::readdir(listing)) {
    const std::string name = entry->d_name, path = directory + "/" + name;
    struct stat status {};
    if (name == "." || name == ".." || ::lstat(path.c_str(), &status) != 0) {
      continue;
    }
    if (S_ISDIR(status.st_mode)) {
      below.push_back(path);
    } else if (name.find(mark) != std::string::npos) {
      ::unlink(path.c_str());
    }
  }
  ::closedir(listing);
  for (size_t i = 0; recursive && i < below.size(); ++i) {
    remove_temporaries(below[i], true);
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
      remove_temporaries(directory, recursive);
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
