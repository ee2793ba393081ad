//go:build unix

package benchmarks

import (
	"syscall"
	"time"
)

// CPUTime is how long this process has run on any core, garbage collection included. Unlike the time on the wall it
// leaves out other processes.
func CPUTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
