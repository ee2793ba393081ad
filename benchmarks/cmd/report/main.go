// Report measures llmrate beside what its users would compose by hand, in one run, and prints a table with the targets
// that are met and those that are missed.
//
// The contestants take turns in short slices, in an order that rotates, so that whatever else the machine does hits all
// of them alike. Each number is the median over the rounds, and each ratio the median of the ratios within a round. The
// numbers in brackets are the quartiles: half of the rounds lie between them. Beside the time on the clock stands the
// processor time of the whole process, the garbage collector's included: it counts what runs beside the jobs on other
// cores, and is not disturbed by other processes. A target is met only if both are within it.
//
// A missed time is no failure: times depend on the machine and its other work. The exit code is 1 only if a premise
// of a measurement does not hold or a job needs more than two allocations, which do not.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/llmrate/llmrate/benchmarks"
)

// The targets.
const (
	mostAllocations = 2
	mostUncontended = 0.7 // of the composed variant
	mostWaiting     = 1.5 // of semaphore.Weighted
	mostStalled     = 2.0 // of what the same work does that shares no lock
)

func main() {
	var o options
	flag.StringVar(&o.benchTime, "benchtime", "1s", "measure each contestant for `d` in all, as go test does; 1x to see only whether everything works")
	flag.IntVar(&o.rounds, "rounds", 45, "take turns so many times; a fifth of that with waiters and Stats")
	flag.IntVar(&o.waiters, "waiters", 100_000, "goroutines that wait on one slot")
	flag.IntVar(&o.jobs, "jobs", 10_000, "jobs that run or wait while Stats is called")
	bench := flag.String("bench", ".", "only the sections whose name matches this `regexp`: uncontended, parallel, waiters, stats")
	flag.Parse()
	err := o.parse(*bench)
	if err == nil {
		err = o.report(context.Background(), os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

type options struct {
	benchTime     string
	rounds        int
	waiters, jobs int

	bench *regexp.Regexp
	time  time.Duration // for each contestant; or 0
	count int           // jobs in each slice
}

func (o *options) parse(bench string) (err error) {
	if o.bench, err = regexp.Compile(bench); err != nil {
		return err
	}
	if times, ok := strings.CutSuffix(o.benchTime, "x"); ok {
		o.count, err = strconv.Atoi(times)
	} else {
		o.time, err = time.ParseDuration(o.benchTime)
	}
	switch {
	case err != nil:
		return err
	case o.count < 0 || o.time < 0 || o.count == 0 && o.time == 0 || o.rounds < 1 || o.waiters < 1 || o.jobs < 2:
		return fmt.Errorf("-benchtime, -rounds, -waiters and -jobs must be more than 0")
	case o.count > 0:
		o.rounds = 1
	}
	return nil
}

func (o *options) report(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, machine())
	if err := benchmarks.CheckLimits(); err != nil {
		return err
	}
	if o.count > 0 {
		fmt.Fprintln(out, "one short round to see that everything works; the times mean nothing")
	} else {
		fmt.Fprintf(out, "%d rounds in turn; medians, with quartiles in brackets; CPU: processor time of the whole process\n", o.rounds)
	}
	r := &table{out: out, times: o.count == 0}
	for _, section := range []struct {
		name string
		run  func(context.Context, *table) error
	}{{"uncontended", o.uncontended}, {"parallel", o.parallel}, {"waiters", o.drain}, {"stats", o.stats}} {
		if !o.bench.MatchString(section.name) {
			continue
		}
		if err := section.run(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
	}
	fmt.Fprintf(out, "\ntargets: %d met, %d missed\n", r.met, r.missed)
	if r.allocations > mostAllocations {
		return fmt.Errorf("a job takes %.2f allocations, at most %d are allowed", r.allocations, mostAllocations)
	}
	return nil
}

// A table collects the verdicts.
type table struct {
	out         io.Writer
	times       bool // mean something
	met, missed int
	allocations float64 // the most of any llmrate variant
}

// timeVerdict is verdict for a time.
func (r *table) timeVerdict(met bool) string {
	if !r.times {
		return "not measured"
	}
	return r.verdict(met)
}

func (r *table) verdict(met bool) string {
	if met {
		r.met++
		return "met"
	}
	r.missed++
	return "MISSED"
}

func (r *table) section(title string, columns string) {
	fmt.Fprintf(r.out, "\n%s\n%-28s %s\n", title, "", columns)
}

// spread is the median of some values and the quartiles.
type spread struct{ low, median, high float64 }

func spreadOf(values []float64) spread {
	s := slices.Sorted(slices.Values(values))
	at := func(p float64) float64 { return s[int(p*float64(len(s)-1)+0.5)] }
	return spread{at(0.25), at(0.5), at(0.75)}
}

// within reports whether the ratio of the times and that of the processor times, if known, are at most most.
func within(most float64, time, cpu spread) bool {
	return time.median <= most && !(cpu.median > most) // it is NaN where the processor time is not known
}

func (s spread) format(width, decimals int) string {
	return fmt.Sprintf("%*.*f %-*s", width, decimals, s.median, 2*width+3, fmt.Sprintf("[%.*f-%.*f]", decimals, s.low, decimals, s.high))
}

func ratios(of, to []float64) spread {
	r := make([]float64, len(of))
	for i := range of {
		r[i] = of[i] / to[i]
	}
	return spreadOf(r)
}

const jobColumns = "  ns/job             ratio               CPU ns/job             ratio             B/job allocs/job"

func (o *options) uncontended(ctx context.Context, r *table) error {
	r.section("Uncontended: a job under requests and tokens per minute and per day, and concurrency; two job types", jobColumns)
	return o.jobsInTurn(ctx, r, 1)
}

func (o *options) parallel(ctx context.Context, r *table) error {
	if runtime.NumCPU() < 2 {
		fmt.Fprintln(r.out, "\nParallel: left out, there is only one core")
		return nil
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	r.section("Parallel: the same from two goroutines on two cores", jobColumns)
	return o.jobsInTurn(ctx, r, 2)
}

// jobsInTurn measures all contestants in slices.
func (o *options) jobsInTurn(ctx context.Context, r *table, goroutines int) error {
	slice := func(i, jobs int) (took, cpu time.Duration, err error) {
		c, err := benchmarks.Contestants[i].New()
		if err != nil {
			return 0, 0, err
		}
		start, used := time.Now(), benchmarks.CPUTime()
		if err := benchmarks.RunParallel(ctx, c, jobs, goroutines); err != nil {
			return 0, 0, err
		}
		took, cpu = time.Since(start), benchmarks.CPUTime()-used
		return took, cpu, c.Check(jobs)
	}
	n := len(benchmarks.Contestants)
	count := make([]int, n)
	for i := range n {
		var err error
		if count[i], err = o.calibrate(func(jobs int) (time.Duration, error) {
			took, _, err := slice(i, jobs)
			return took, err
		}); err != nil {
			return err
		}
	}
	clock, processor := make([][]float64, n), make([][]float64, n)
	for round := range o.rounds {
		for k := range n {
			i := (k + round) % n
			took, cpu, err := slice(i, count[i])
			if err != nil {
				return err
			}
			clock[i] = append(clock[i], float64(took)/float64(count[i]))
			processor[i] = append(processor[i], float64(cpu)/float64(count[i]))
		}
	}
	for i, contestant := range benchmarks.Contestants {
		bytes, allocations, err := allocated(ctx, i)
		if err != nil {
			return err
		}
		times, cpus := ratios(clock[i], clock[0]), ratios(processor[i], processor[0])
		line := fmt.Sprintf("%-28s %s %s %s %s %5.0f %5.2f", contestant.Name, spreadOf(clock[i]).format(5, 0), times.format(5, 2),
			spreadOf(processor[i]).format(5, 0), cpus.format(5, 2), bytes, allocations)
		if strings.HasPrefix(contestant.Name, "llmrate") {
			r.allocations = max(r.allocations, allocations)
		}
		if contestant.Name == "llmrate" {
			line += fmt.Sprintf("   at most %.1f: %s; at most %d allocations: %s",
				mostUncontended, r.timeVerdict(within(mostUncontended, times, cpus)), mostAllocations, r.verdict(allocations <= mostAllocations))
		}
		fmt.Fprintln(r.out, line)
	}
	return nil
}

// calibrate finds how many jobs fill a slice.
func (o *options) calibrate(slice func(jobs int) (time.Duration, error)) (int, error) {
	if o.count > 0 {
		return o.count, nil
	}
	want := o.time / time.Duration(o.rounds)
	jobs := 1_000
	for {
		took, err := slice(jobs)
		if err != nil {
			return 0, err
		}
		if took >= want/4 {
			return max(1, int(float64(jobs)*float64(want)/float64(took))), nil
		}
		jobs *= 2
	}
}

// allocated is what one job allocates, counted over many on one core, with nothing else running.
func allocated(ctx context.Context, i int) (bytes, allocations float64, err error) {
	const jobs = 10_000
	c, err := benchmarks.Contestants[i].New()
	if err != nil {
		return 0, 0, err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if err := benchmarks.RunJobs(ctx, c, 100); err != nil {
		return 0, 0, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = benchmarks.RunJobs(ctx, c, jobs)
	runtime.ReadMemStats(&after)
	// What the runtime allocates for itself now and then is far less than one in a hundred jobs.
	hundredths := (after.Mallocs - before.Mallocs) * 100 / jobs
	return float64(after.TotalAlloc-before.TotalAlloc) / jobs, float64(hundredths) / 100, err
}

func (o *options) drain(ctx context.Context, r *table) error {
	r.section(fmt.Sprintf("Waiters: %d goroutines wait on one slot and pass in order; for each of them, from the opening until all are through,\n"+
		"the CPU time to start it and let it queue, and what it held while it waited: heap, and stack as the runtime rounds it up", o.waiters),
		"      ns             ratio                   CPU ns             ratio        queueing CPU ns    heap B stack B")
	n := len(benchmarks.Gates)
	clock, processor, queueing := make([][]float64, n), make([][]float64, n), make([][]float64, n)
	heap, stacks := make([][]float64, n), make([][]float64, n)
	late := make([]int, n)
	rounds := o.fewer()
	for round := range rounds + 1 {
		for k := range n {
			i := (k + round) % n
			g, err := benchmarks.Gates[i].New()
			if err != nil {
				return err
			}
			q, err := benchmarks.DrainQueue(ctx, g, o.waiters)
			if err != nil {
				return fmt.Errorf("%s: %w", benchmarks.Gates[i].Name, err)
			}
			if round == 0 { // the runtime makes goroutines, which it then keeps and uses again
				continue
			}
			each := float64(o.waiters)
			clock[i] = append(clock[i], float64(q.Drain)/each)
			processor[i] = append(processor[i], float64(q.DrainCPU)/each)
			queueing[i] = append(queueing[i], float64(q.EnqueueCPU)/each)
			heap[i] = append(heap[i], float64(q.Heap)/each)
			stacks[i] = append(stacks[i], float64(q.Stacks)/each)
			late[i] += q.Late
		}
	}
	for i, gate := range benchmarks.Gates {
		times, cpus := ratios(clock[i], clock[0]), ratios(processor[i], processor[0])
		line := fmt.Sprintf("%-28s %s %s %s %s %s %5.0f %6.0f", gate.Name, spreadOf(clock[i]).format(5, 0), times.format(5, 2),
			spreadOf(processor[i]).format(5, 0), cpus.format(5, 2), spreadOf(queueing[i]).format(5, 0), spreadOf(heap[i]).median, spreadOf(stacks[i]).median)
		if gate.Name == "llmrate" {
			line += fmt.Sprintf("   at most %.1f: %s", mostWaiting, r.timeVerdict(within(mostWaiting, times, cpus)))
		}
		if late[i] > 0 {
			line += fmt.Sprintf("   (%d of %d were interrupted on their way into the queue)", late[i], rounds*o.waiters)
		}
		fmt.Fprintln(r.out, line)
	}
	return nil
}

// fewer rounds are enough for what takes long.
func (o *options) fewer() int { return (o.rounds + 4) / 5 }

func (o *options) stats(ctx context.Context, r *table) error {
	busy, err := benchmarks.NewBusy(o.jobs)
	if err != nil {
		return err
	}
	other, err := benchmarks.NewBusy(o.jobs)
	if err != nil {
		return err
	}
	r.section(fmt.Sprintf("Stats: latency of an admission in µs, while %d jobs run or wait", o.jobs),
		"       p50                  p99                p99.9            µs per Stats")
	modes := []struct {
		name    string
		watched *benchmarks.Busy
	}{{"nobody calls Stats", nil}, {"Stats of another limiter", other}, {"Stats of this limiter", busy}}
	p50, p99, p999, calls := make([][]float64, 3), make([][]float64, 3), make([][]float64, 3), make([][]float64, 3)
	µs := func(d time.Duration) float64 { return float64(d) / 1e3 }
	admissions := 20_000
	if o.count > 0 {
		admissions = 2_000
	}
	for round := range o.fewer() {
		for k := range modes {
			i := (k + round) % len(modes)
			a, err := benchmarks.MeasureAdmission(ctx, busy, modes[i].watched, admissions)
			if err != nil {
				return fmt.Errorf("%s: %w", modes[i].name, err)
			}
			p50[i] = append(p50[i], µs(a.Percentile(0.5)))
			p99[i] = append(p99[i], µs(a.Percentile(0.99)))
			p999[i] = append(p999[i], µs(a.Percentile(0.999)))
			calls[i] = append(calls[i], µs(a.Call()))
		}
	}
	for i, mode := range modes {
		line := fmt.Sprintf("%-28s %s %s %s", mode.name, spreadOf(p50[i]).format(6, 2), spreadOf(p99[i]).format(6, 2), spreadOf(p999[i]).format(6, 1))
		if mode.watched != nil {
			line += fmt.Sprintf(" %6.0f", spreadOf(calls[i]).median)
		}
		if mode.watched == busy {
			line += fmt.Sprintf("   p99.9 at most %.0f times that of the line above: %s", mostStalled, r.timeVerdict(ratios(p999[i], p999[1]).median <= mostStalled))
		}
		fmt.Fprintln(r.out, line)
	}
	fmt.Fprintln(r.out, "(Stats in a loop on another core. That of another limiter costs the same time and garbage, but shares no lock.)")
	if err := busy.Close(); err != nil {
		return err
	}
	return other.Close()
}

// machine says where the numbers come from.
func machine() string {
	cpu := ""
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	} else if brand, err := exec.Command("sysctl", "-n", "machdep.cpu.brand_string").Output(); err == nil {
		cpu = strings.TrimSpace(string(brand))
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("machine: %s, %d cores, %s, %s/%s %s, %s", cmp.Or(cpu, "unknown processor"), runtime.NumCPU(), runtime.Version(),
		runtime.GOOS, runtime.GOARCH, strings.TrimSpace(string(kernel)), time.Now().UTC().Format(time.DateOnly))
}
