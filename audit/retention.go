package audit

import "time"

// PrunedFacts describe one step of the operator's retention. The records of what was deleted
// stay in the log, and so do the hashes of texts that were erased.
type PrunedFacts struct {
	What   string    // one of the Pruned constants
	Rows   int64     // requests, leases, or records whose texts were erased
	Before time.Time // all of it had ended before
	From   time.Time // when the oldest of it began: a request was filed, a lease opened, a text recorded
	Until  time.Time // the same of the newest
}

// What is pruned.
const (
	PrunedRequests = "requests" // with the leases that they carry
	PrunedLeases   = "leases"
	PrunedTexts    = "texts" // of requests, votes, ends and others, next to the log and in the rows of requests and leases
)

func (f *PrunedFacts) fields(c *codec) {
	c.time("before", &f.Before)
	c.time("from", &f.From)
	c.number("rows", &f.Rows)
	c.time("until", &f.Until)
	c.text("what", &f.What, maxWord)
}

// Problem returns what is wrong with the facts of a record at a time; empty: nothing.
func (f *PrunedFacts) Problem(at time.Time) string {
	switch {
	case f.What != PrunedRequests && f.What != PrunedLeases && f.What != PrunedTexts:
		return "it does not state what was pruned"
	case f.Rows <= 0:
		return "it states that nothing was pruned"
	case f.Until.Before(f.From):
		return "what it pruned ends before it begins"
	case !f.Until.Before(f.Before):
		return "it pruned what began after the time before which all of it had ended"
	case !f.Before.Before(at):
		return "it pruned what had not ended"
	}
	return ""
}
