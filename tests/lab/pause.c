/* Holds a pod's namespaces open. As the pod's first process it must reap orphans (shareProcessNamespace) and end on request. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void on_signal(int number)
{
	if (number != SIGCHLD)
		_exit(0);
	while (waitpid(-1, 0, WNOHANG) > 0)
		;
}

int main(void)
{
	signal(SIGCHLD, on_signal);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	for (;;)
		pause();
}
