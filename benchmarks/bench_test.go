package benchmarks

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestLimits(t *testing.T) {
	if err := CheckLimits(); err != nil {
		t.Fatal(err)
	}
}

func TestContestants(t *testing.T) {
	for _, contestant := range Contestants {
		t.Run(contestant.Name, func(t *testing.T) {
			c, err := contestant.New()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Check(0); err != nil {
				t.Fatal(err)
			}
			if err := RunParallel(t.Context(), c, 101, 2); err != nil {
				t.Fatal(err)
			}
			if err := c.Check(101); err != nil {
				t.Fatal(err)
			}
			// What Check is worth: had one job not been charged, it would say so.
			if strings.HasPrefix(contestant.Name, "llmrate") && contestant.Name != "llmrate/continuous" && c.Check(102) == nil {
				t.Error("Check does not notice a job that was not charged")
			}
		})
	}
}

func TestGates(t *testing.T) {
	for _, gate := range Gates {
		t.Run(gate.Name, func(t *testing.T) {
			g, err := gate.New()
			if err != nil {
				t.Fatal(err)
			}
			q, err := DrainQueue(t.Context(), g, 1_000)
			if err != nil {
				t.Fatal(err)
			}
			if q.Stacks <= 0 {
				t.Errorf("waiters without stacks: %+v", q)
			}
		})
	}
}

// lastInFirstOut is a gate that the measurement must not accept.
type lastInFirstOut struct {
	mu      sync.Mutex
	waiting []chan struct{}
}

func (g *lastInFirstOut) Close(context.Context) error { return nil }
func (g *lastInFirstOut) Classes() int                { return 1 }
func (g *lastInFirstOut) Waiting() int                { return -1 }
func (g *lastInFirstOut) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if last := len(g.waiting) - 1; last >= 0 {
		close(g.waiting[last])
		g.waiting = g.waiting[:last]
	}
}
func (g *lastInFirstOut) Pass(_ context.Context, _ int, inside func()) error {
	turn := make(chan struct{})
	g.mu.Lock()
	g.waiting = append(g.waiting, turn)
	g.mu.Unlock()
	<-turn
	inside()
	g.Open()
	return nil
}

func TestDrainQueueSeesDisorder(t *testing.T) {
	if q, err := DrainQueue(t.Context(), new(lastInFirstOut), 1_000); err == nil {
		t.Fatalf("a stack passes for a queue: %+v", q)
	}
}

func TestMeasureAdmission(t *testing.T) {
	b, err := NewBusy(100)
	if err != nil {
		t.Fatal(err)
	}
	a, err := MeasureAdmission(t.Context(), b, b, 200)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Latencies) != 200 || len(a.Calls) == 0 || a.Percentile(0.5) > a.Percentile(0.999) {
		t.Fatalf("%+v", a)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkUncontended(b *testing.B) {
	for _, contestant := range Contestants {
		b.Run(contestant.Name, func(b *testing.B) {
			c, err := contestant.New()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if err := c.Job(b.Context(), i); err != nil {
					b.Fatal(err)
				}
				i++
			}
			if err := c.Check(i); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkParallel is the same on all cores: -cpu 2 for two.
func BenchmarkParallel(b *testing.B) {
	for _, contestant := range Contestants {
		b.Run(contestant.Name, func(b *testing.B) {
			c, err := contestant.New()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			var jobs atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				i := 0
				for ; pb.Next(); i++ {
					if err := c.Job(b.Context(), i); err != nil {
						b.Error(err)
						return
					}
				}
				jobs.Add(int64(i))
			})
			if err := c.Check(int(jobs.Load())); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkWaiters lets 100,000 goroutines queue before one slot and drain in order.
func BenchmarkWaiters(b *testing.B) {
	const waiters = 100_000
	for _, gate := range Gates {
		b.Run(gate.Name, func(b *testing.B) {
			var sum Queue
			for b.Loop() {
				g, err := gate.New()
				if err != nil {
					b.Fatal(err)
				}
				q, err := DrainQueue(b.Context(), g, waiters)
				if err != nil {
					b.Fatal(err)
				}
				sum.Enqueue += q.Enqueue
				sum.Drain += q.Drain
				sum.Heap += q.Heap
				sum.Stacks += q.Stacks
			}
			n := float64(b.N) * waiters
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(sum.Enqueue)/n, "enqueue-ns/waiter")
			b.ReportMetric(float64(sum.Drain)/n, "drain-ns/waiter")
			b.ReportMetric(float64(sum.Heap)/n, "heap-B/waiter")
			b.ReportMetric(float64(sum.Stacks)/n, "stack-B/waiter")
		})
	}
}

// BenchmarkAdmission is the latency of an admission among 10,000 jobs that run or wait, while nobody calls Stats, while
// somebody calls that of another limiter (the same work and garbage, but no common lock), and that of this one.
func BenchmarkAdmission(b *testing.B) {
	const jobs, batch = 10_000, 10_000
	busy, err := NewBusy(jobs)
	if err != nil {
		b.Fatal(err)
	}
	other, err := NewBusy(jobs)
	if err != nil {
		b.Fatal(err)
	}
	for _, mode := range []struct {
		name    string
		watched *Busy
	}{{"quiet", nil}, {"stats-of-another", other}, {"stats", busy}} {
		b.Run(mode.name, func(b *testing.B) {
			var p50, p99, p999 float64
			for b.Loop() {
				a, err := MeasureAdmission(b.Context(), busy, mode.watched, batch)
				if err != nil {
					b.Fatal(err)
				}
				p50 += float64(a.Percentile(0.5))
				p99 += float64(a.Percentile(0.99))
				p999 += float64(a.Percentile(0.999))
			}
			n := float64(b.N)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(p50/n, "p50-ns")
			b.ReportMetric(p99/n, "p99-ns")
			b.ReportMetric(p999/n, "p99.9-ns")
		})
	}
	for _, l := range []*Busy{busy, other} {
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
