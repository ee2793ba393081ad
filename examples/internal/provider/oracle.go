package provider

import "time"

// Report is what really arrived for one model, counted apart from the windows that admit: if the two disagree, one is wrong.
type Report struct {
	Arrived         int64 // HTTP requests, refused ones included
	Served          int64 // answered with 200
	RateLimited     int64 // answered with 429
	Tokens          int64 // input and output of what was served
	PeakConcurrent  int64
	MostRequests    int64   // most that arrived in one window: a slice, or with continuous refill any stretch as long
	MostTokens      int64   // most tokens of calls that began in one window
	TokensAllowed   float64 // most that the token limit would have let through between First and Last
	RequestsAllowed float64
	First, Last     time.Time // first and last arrival
}

// arrival is one HTTP request as the oracle saw it. Arrivals are kept in order of time.
type arrival struct {
	at     time.Time
	tokens int64 // 0 until it is served
}

type oracle struct {
	arrivals                    []*arrival
	served, rateLimited, tokens int64
	concurrent, peakConcurrent  int64
}

func (o *oracle) arrive(now time.Time) *arrival {
	a := &arrival{at: now}
	o.arrivals = append(o.arrivals, a)
	return a
}

func (o *oracle) begin() {
	o.concurrent++
	o.peakConcurrent = max(o.peakConcurrent, o.concurrent)
}

func (o *oracle) end(a *arrival, tokens int64) {
	o.concurrent--
	o.served++
	a.tokens = tokens
	o.tokens += tokens
}

func (o *oracle) report(requests, tokens Limit) Report {
	r := Report{
		Arrived:        int64(len(o.arrivals)),
		Served:         o.served,
		RateLimited:    o.rateLimited,
		Tokens:         o.tokens,
		PeakConcurrent: o.peakConcurrent,
		MostRequests:   o.most(requests, func(*arrival) int64 { return 1 }),
		MostTokens:     o.most(tokens, func(a *arrival) int64 { return a.tokens }),
	}
	if len(o.arrivals) > 0 {
		r.First, r.Last = o.arrivals[0].at, o.arrivals[len(o.arrivals)-1].at
		if tokens.Max > 0 {
			r.TokensAllowed = tokens.allowed(r.First, r.Last)
		}
		if requests.Max > 0 {
			r.RequestsAllowed = requests.allowed(r.First, r.Last)
		}
	}
	return r
}

// most finds the window with the largest sum. It recounts every arrival and shares no arithmetic with window.
func (o *oracle) most(l Limit, units func(*arrival) int64) int64 {
	if l.Max == 0 {
		return 0
	}
	var sum, most int64
	oldest := 0
	for _, a := range o.arrivals {
		for outside := true; outside && oldest < len(o.arrivals); {
			first := o.arrivals[oldest]
			if l.Continuous {
				outside = a.at.Sub(first.at) >= l.Per
			} else {
				outside = first.at.UnixNano()/int64(l.Per) != a.at.UnixNano()/int64(l.Per)
			}
			if outside {
				sum -= units(first)
				oldest++
			}
		}
		sum += units(a)
		most = max(most, sum)
	}
	return most
}
