package llmrate

// MaxAmount is the largest limit, estimate or usage accepted, in requests, tokens or jobs: 2^46, some 70 trillion.
// It keeps every sum exact, also in the double-precision numbers of Redis scripts.
const MaxAmount = 1 << 46

// Usage is what a call used, or is estimated to use. All counts are 0 or more and at most MaxAmount.
//
// Map each provider's own report: InputTokens excludes what was read from a cache. OpenAI counts cached tokens inside
// prompt_tokens, so subtract them; Anthropic reports them apart.
type Usage struct {
	Requests     int64 // requests sent, retries of the SDK included. 0 beside tokens means: as estimated
	InputTokens  int64 // tokens of the prompt, without those read from a cache
	CachedTokens int64 // tokens of the prompt that were read from a cache
	OutputTokens int64 // tokens generated, reasoning included
}

// TotalTokens is what counts as tokens by default: input, cached and output together.
func (u Usage) TotalTokens() int64 { return u.InputTokens + u.CachedTokens + u.OutputTokens }

// isZero is u == Usage{}, which the compiler makes slower: it goes through memory.
func (u Usage) isZero() bool { return u.Requests|u.InputTokens|u.CachedTokens|u.OutputTokens == 0 }

// check returns a *FieldError for the first count out of range.
func (u Usage) check(what string) error {
	if uint64(u.Requests|u.InputTokens|u.CachedTokens|u.OutputTokens) < MaxAmount {
		return nil // the usual case at a glance: no bit at or above that of MaxAmount is set
	}
	return u.checkEach(what)
}

func (u Usage) checkEach(what string) error {
	for _, f := range [...]struct {
		name  string
		count int64
	}{{"Requests", u.Requests}, {"InputTokens", u.InputTokens}, {"CachedTokens", u.CachedTokens}, {"OutputTokens", u.OutputTokens}} {
		if problem := amountProblem(f.count); problem != "" {
			return &FieldError{Field: what + "." + f.name, Problem: problem}
		}
	}
	return nil
}

// Pricing is what a model costs, in USD per million tokens. The zero value costs nothing.
type Pricing struct {
	Input  float64 // tokens of the prompt that were not read from a cache
	Cached float64 // tokens of the prompt that were read from a cache
	Output float64 // generated tokens
}

// Cost is the price of u in USD.
func (p Pricing) Cost(u Usage) float64 {
	return (float64(u.InputTokens)*p.Input + float64(u.CachedTokens)*p.Cached + float64(u.OutputTokens)*p.Output) / 1e6
}

// Resource is what a limit counts.
type Resource string

// The resources a limit can count.
const (
	Requests     Resource = "requests"
	Tokens       Resource = "tokens"        // as ModelConfig.CountTokens says
	InputTokens  Resource = "input_tokens"  // without cached tokens
	OutputTokens Resource = "output_tokens" // reasoning included
)

// resources lists every Resource; amounts holds one number for each, in this order.
var resources = [...]Resource{Requests, Tokens, InputTokens, OutputTokens}

type amounts [len(resources)]int64

func resourceIndex(r Resource) int {
	for i, known := range resources {
		if r == known {
			return i
		}
	}
	return -1
}
