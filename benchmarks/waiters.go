package benchmarks

import (
	"context"
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llmrate/llmrate"
	"golang.org/x/sync/semaphore"
)

// A Gate lets one goroutine through at a time.
type Gate interface {
	// Close takes the one slot, Open gives it back.
	Close(ctx context.Context) error
	Open()

	// Pass waits for the slot, calls inside and gives the slot back. class is 0 or 1: a gate that has classes keeps
	// the order in each.
	Pass(ctx context.Context, class int, inside func()) error

	// Classes is how many classes it has.
	Classes() int

	// Waiting is how many wait; -1 if the gate does not know.
	Waiting() int
}

// Gates of the waiters' benchmark. The first is the one that the others are compared with.
var Gates = []struct {
	Name string
	New  func() (Gate, error)
}{
	{"semaphore", func() (Gate, error) { return &semaphoreGate{semaphore.NewWeighted(1)}, nil }},
	{"channel", func() (Gate, error) { return make(channelGate, 1), nil }},
	{"llmrate", func() (Gate, error) {
		return newLimitedGate(llmrate.Limits{MaxConcurrent: 1}, 1)
	}},
	{"llmrate/run-all-five-limits", func() (Gate, error) {
		limits := generous
		limits.MaxConcurrent = 1
		g, err := newLimitedGate(limits, 2)
		return runGate{g}, err
	}},
}

type semaphoreGate struct{ *semaphore.Weighted }

func (g *semaphoreGate) Close(ctx context.Context) error { return g.Acquire(ctx, 1) }
func (g *semaphoreGate) Open()                           { g.Release(1) }
func (g *semaphoreGate) Classes() int                    { return 1 }
func (g *semaphoreGate) Waiting() int                    { return -1 }
func (g *semaphoreGate) Pass(ctx context.Context, _ int, inside func()) error {
	if err := g.Acquire(ctx, 1); err != nil {
		return err
	}
	inside()
	g.Release(1)
	return nil
}

// channelGate is the cheapest there is, for scale: a channel of one element, which cannot count, weigh or cancel.
type channelGate chan struct{}

func (g channelGate) Close(context.Context) error { g <- struct{}{}; return nil }
func (g channelGate) Open()                       { <-g }
func (g channelGate) Classes() int                { return 1 }
func (g channelGate) Waiting() int                { return -1 }
func (g channelGate) Pass(_ context.Context, _ int, inside func()) error {
	g <- struct{}{}
	inside()
	<-g
	return nil
}

// limitedGate is llmrate by Acquire and Release.
type limitedGate struct {
	*llmrate.Limiter[string]
	classes int
	held    *llmrate.Reservation[string]
}

func newLimitedGate(limits llmrate.Limits, classes int) (*limitedGate, error) {
	types := make(map[string]llmrate.JobType[string])
	for _, t := range jobTypes[:classes] {
		types[t.name] = llmrate.JobType[string]{EstimatedTokens: t.estimate, MaxWait: map[string]time.Duration{model: time.Hour}}
	}
	l, err := llmrate.New(context.Background(), llmrate.Config[string]{
		Models:   []llmrate.ModelConfig[string]{{ID: model, Limits: limits}},
		JobTypes: types,
	})
	return &limitedGate{Limiter: l, classes: classes}, err
}

func (g *limitedGate) Close(ctx context.Context) (err error) {
	g.held, err = g.Acquire(ctx, jobTypes[0].name)
	return err
}
func (g *limitedGate) Open()        { g.held.Release() }
func (g *limitedGate) Classes() int { return g.classes }
func (g *limitedGate) Waiting() int { return int(g.Stats().Models[model].Concurrency.Waiting) }
func (g *limitedGate) Pass(ctx context.Context, class int, inside func()) error {
	r, err := g.Acquire(ctx, jobTypes[class].name)
	if err != nil {
		return err
	}
	inside()
	r.Release()
	return nil
}

// runGate is llmrate by Run, with all five limits and two job types.
type runGate struct{ *limitedGate }

func (g runGate) Pass(ctx context.Context, class int, inside func()) error {
	_, err := g.Run(ctx, jobTypes[class].name, func(context.Context, llmrate.Attempt[string]) (llmrate.Usage, error) {
		inside()
		return used, nil
	})
	return err
}

// A Queue is what a queue of waiters cost.
type Queue struct {
	Enqueue, EnqueueCPU time.Duration // to start all goroutines one by one, each until it waits
	Drain, DrainCPU     time.Duration // from the slot's opening until all have been through
	Heap                int64         // bytes that all waiters held together, goroutine stacks left aside
	Stacks              int64         // bytes of their stacks; see the runtime's adaptive stack size
	Late                int           // waiters that came after one that had arrived behind them; see DrainQueue
}

// DrainQueue lets n goroutines queue before a closed gate, then opens it and waits until all are through.
//
// To know the order, the goroutines are started one by one on one core, each running until it blocks. One that the
// scheduler interrupts between taking its number and queueing, which happens now and then on a busy machine, comes in
// behind later ones through no fault of the gate. So a few late ones in a thousand are accepted. An unfair gate has
// about half.
func DrainQueue(ctx context.Context, g Gate, n int) (Queue, error) {
	var q Queue
	var before, after runtime.MemStats
	if err := g.Close(ctx); err != nil {
		return q, err
	}
	runtime.GC()
	runtime.GC() // the first one's sweep and the stacks of dead goroutines
	runtime.ReadMemStats(&before)
	waitingBefore := waitingGoroutines()

	classes := g.Classes()
	var arrived, failed atomic.Int64
	var wg sync.WaitGroup
	var inside, overlaps, passed int // by whoever is inside
	latest := make([]int, classes)
	one := func() {
		defer wg.Done()
		i := int(arrived.Add(1))
		class := i % classes
		err := g.Pass(ctx, class, func() {
			inside++
			if inside != 1 {
				overlaps++
			}
			if i < latest[class] {
				q.Late++
			}
			latest[class] = max(latest[class], i)
			passed++
			inside--
		})
		if err != nil {
			failed.Add(1)
		}
	}
	wg.Add(n)
	procs := runtime.GOMAXPROCS(1)
	start, cpu := time.Now(), CPUTime()
	for i := range n {
		go one()
		for arrived.Load() <= int64(i) {
			runtime.Gosched()
		}
	}
	q.Enqueue, q.EnqueueCPU = time.Since(start), CPUTime()-cpu
	runtime.GOMAXPROCS(procs)

	// Everybody waits, says the runtime, and so does the gate if it can.
	for end := time.Now().Add(10 * time.Second); waitingGoroutines() < waitingBefore+n-n/1000; {
		if time.Now().After(end) {
			return q, fmt.Errorf("only %d of %d goroutines wait", waitingGoroutines()-waitingBefore, n)
		}
		runtime.Gosched()
	}
	if waiting := g.Waiting(); waiting >= 0 && waiting != n {
		return q, fmt.Errorf("the gate knows of %d waiters, want %d", waiting, n)
	}
	if passed != 0 {
		return q, fmt.Errorf("%d goroutines passed a closed gate", passed)
	}
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	q.Heap = int64(after.HeapAlloc) - int64(before.HeapAlloc)
	q.Stacks = int64(after.StackInuse) - int64(before.StackInuse)

	start, cpu = time.Now(), CPUTime()
	g.Open()
	wg.Wait()
	q.Drain, q.DrainCPU = time.Since(start), CPUTime()-cpu

	switch {
	case failed.Load() > 0:
		return q, fmt.Errorf("%d waiters were refused", failed.Load())
	case passed != n || overlaps > 0:
		return q, fmt.Errorf("%d of %d passed, %d times two at once", passed, n, overlaps)
	case q.Late > n/200+2:
		return q, fmt.Errorf("%d of %d waiters came out of order", q.Late, n)
	}
	return q, nil
}

// waitingGoroutines is approximate: the runtime says so.
func waitingGoroutines() int {
	s := []metrics.Sample{{Name: "/sched/goroutines/waiting:goroutines"}}
	metrics.Read(s)
	return int(s[0].Value.Uint64())
}
