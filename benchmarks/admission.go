package benchmarks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llmrate/llmrate"
)

// A Busy limiter has many jobs running and waiting, and room left for one more job type.
type Busy struct {
	limiter          *llmrate.Limiter[string]
	running, waiting int
	held             []*llmrate.Reservation[string]
	cancel           context.CancelFunc
	wg               sync.WaitGroup
	admitted         atomic.Int64 // of those that should wait
}

const (
	batch       = "batch"       // runs and waits
	interactive = "interactive" // has room
)

// NewBusy makes a limiter on which half of the jobs run and the other half wait.
func NewBusy(jobs int) (*Busy, error) {
	limits := generous
	limits.MaxConcurrent = int64(jobs) // each of the two types has half of that
	patient := map[string]time.Duration{model: time.Hour}
	l, err := llmrate.New(context.Background(), llmrate.Config[string]{
		Models: []llmrate.ModelConfig[string]{{ID: model, Limits: limits}},
		JobTypes: map[string]llmrate.JobType[string]{
			batch:       {EstimatedTokens: 2_000, Ratio: 0.5, FixedRatio: true, MaxWait: patient},
			interactive: {EstimatedTokens: 2_000, Ratio: 0.5, FixedRatio: true, MaxWait: patient},
		},
	})
	if err != nil {
		return nil, err
	}
	b := &Busy{limiter: l, running: jobs / 2, waiting: jobs - jobs/2}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	for range b.running {
		r, err := l.TryAcquire(ctx, batch)
		if err != nil {
			return nil, err
		}
		b.held = append(b.held, r)
	}
	for range b.waiting {
		b.wg.Go(func() {
			if r, err := l.Acquire(ctx, batch); err == nil {
				b.admitted.Add(1)
				r.Release()
			}
		})
	}
	for end := time.Now().Add(10 * time.Second); l.Stats().JobTypes[batch].Waiting < b.waiting; {
		if time.Now().After(end) {
			return nil, fmt.Errorf("jobs do not queue: %+v", l.Stats().JobTypes)
		}
		time.Sleep(time.Millisecond)
	}
	return b, b.check(l.Stats())
}

// check is the premise: everybody who should run or wait still does.
func (b *Busy) check(st llmrate.Stats[string]) error {
	t := st.JobTypes[batch]
	if t.InFlight != b.running || t.Waiting != b.waiting || len(st.Jobs) < b.running+b.waiting || b.admitted.Load() > 0 {
		return fmt.Errorf("%d run and %d wait, want %d and %d; %d jobs listed", t.InFlight, t.Waiting, b.running, b.waiting, len(st.Jobs))
	}
	return nil
}

// Close ends all jobs.
func (b *Busy) Close() error {
	b.cancel()
	b.wg.Wait()
	for _, r := range b.held {
		r.Release()
	}
	return b.limiter.Close(context.Background())
}

// Admissions are the latencies of admitting a job that has room, in order of size.
type Admissions struct {
	Latencies []time.Duration
	Calls     []time.Duration // how long each call of Stats took meanwhile
}

// Percentile of the latencies; p is from 0 to 1.
func (a *Admissions) Percentile(p float64) time.Duration { return percentile(a.Latencies, p) }

// Call is the median duration of a call of Stats.
func (a *Admissions) Call() time.Duration { return percentile(a.Calls, 0.5) }

func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

// MeasureAdmission admits and ends n jobs of the other type on b while another goroutine calls the Stats of watched in
// a loop; nobody does if that is nil. The jobs come at random times, 10 µs apart on average, so that they find the
// limiter in whatever state it is in, not only in that after the last job.
func MeasureAdmission(ctx context.Context, b, watched *Busy, n int) (Admissions, error) {
	var a Admissions
	var stop atomic.Bool
	var failed error
	var wg sync.WaitGroup
	called := make(chan struct{})
	if watched == nil {
		close(called)
	} else {
		wg.Go(func() {
			for first := true; first || !stop.Load(); first = false {
				start := time.Now()
				st := watched.limiter.Stats()
				a.Calls = append(a.Calls, time.Since(start))
				if err := watched.check(st); err != nil && failed == nil {
					failed = err
				}
				if first {
					close(called)
				}
			}
		})
	}
	<-called
	a.Latencies = make([]time.Duration, 0, n)
	for range n {
		gap := time.Duration(rand.Int64N(int64(20 * time.Microsecond)))
		for start := time.Now(); time.Since(start) < gap; {
		}
		start := time.Now()
		r, err := b.limiter.Acquire(ctx, interactive)
		a.Latencies = append(a.Latencies, time.Since(start))
		if err == nil {
			err = r.Settle(used)
		}
		if err != nil {
			return a, err
		}
	}
	stop.Store(true)
	wg.Wait()
	slices.Sort(a.Latencies)
	slices.Sort(a.Calls)
	if failed != nil {
		return a, failed
	}
	return a, b.check(b.limiter.Stats())
}
