#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "cli/cli.hpp"

// Ctrl-C asks the running work to stop; a second one ends the program at once.
int main(int count, char** words) {
  sigset_t interrupts;
  sigemptyset(&interrupts);
  sigaddset(&interrupts, SIGINT);
  sigaddset(&interrupts, SIGTERM);
  // Blocked here and so in every thread started from here; the watcher alone takes them, where anything may
  // be called.
  pthread_sigmask(SIG_BLOCK, &interrupts, nullptr);
  std::stop_source stop;
  std::thread([interrupts, stop]() mutable {
    int signal = 0;
    if (sigwait(&interrupts, &signal) == 0) stop.request_stop();
    if (sigwait(&interrupts, &signal) == 0) _exit(130);
  }).detach();

  // A limit on the size of files shows as an error of the write that meets it.
  std::signal(SIGXFSZ, SIG_IGN);
  const std::vector<std::string> arguments(words + 1, words + count);
  return gradgram::cli::cli_main(arguments, std::cout, std::cerr, stop.get_token());
}
