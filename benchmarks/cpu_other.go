//go:build !unix

package benchmarks

import "time"

// CPUTime is not known here.
func CPUTime() time.Duration { return 0 }
