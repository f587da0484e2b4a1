package broker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Ceiling is the most that an identity may ever have, whatever policies permit. It is
// immutable. A nil Ceiling bounds nothing; one without parts permits nothing.
type Ceiling struct {
	Parts []CeilingPart // sorted by entitlement
}

// A CeilingPart is what an identity may have of one entitlement.
type CeilingPart struct {
	Entitlement string
	Scopes      []string `json:",omitempty"` // sorted; empty: the whole entitlement
}

// Part returns the part of an entitlement, and whether there is one.
func (c *Ceiling) Part(entitlement string) (CeilingPart, bool) {
	if c == nil {
		return CeilingPart{Entitlement: entitlement}, true
	}
	i, found := slices.BinarySearchFunc(c.Parts, entitlement, func(p CeilingPart, name string) int { return cmp.Compare(p.Entitlement, name) })
	if !found {
		return CeilingPart{}, false
	}
	return c.Parts[i], true
}

// Allows reports whether scopes of an entitlement are within the ceiling.
func (c *Ceiling) Allows(entitlement string, scopes ...string) bool {
	part, found := c.Part(entitlement)
	return found && len(part.above(scopes)) == 0
}

// above returns the scopes that the part does not have. Without scopes, an ask is for the
// entitlement as a whole, which is above a part with scopes.
func (p *CeilingPart) above(scopes []string) (above []string) {
	if len(p.Scopes) == 0 {
		return nil
	}
	if len(scopes) == 0 {
		return []string{"the whole"}
	}
	for _, s := range scopes {
		if _, found := slices.BinarySearch(p.Scopes, s); !found {
			above = append(above, s)
		}
	}
	return above
}

// Intersect returns what both ceilings allow.
func (c *Ceiling) Intersect(o *Ceiling) *Ceiling {
	switch {
	case c == nil:
		return o
	case o == nil:
		return c
	}
	both := &Ceiling{Parts: []CeilingPart{}}
	for _, p := range c.Parts {
		other, found := o.Part(p.Entitlement)
		switch {
		case !found:
			continue
		case len(p.Scopes) == 0:
			p.Scopes = other.Scopes
		case len(other.Scopes) > 0:
			p.Scopes = slices.DeleteFunc(slices.Clone(p.Scopes), func(s string) bool { return len(other.above([]string{s})) > 0 })
			if len(p.Scopes) == 0 {
				continue
			}
		}
		both.Parts = append(both.Parts, p)
	}
	return both
}

// Texts returns the parts as people read them: "tickets-api: tickets:read".
func (c *Ceiling) Texts() []string {
	if c == nil {
		return nil
	}
	texts := make([]string, len(c.Parts))
	for i, p := range c.Parts {
		texts[i] = p.Entitlement + ": " + cmp.Or(strings.Join(p.Scopes, " "), "all")
	}
	return texts
}

// Exceeds returns why the principal's ceiling does not allow the query; empty if it does.
// It applies to requests only, and holds whatever policies permit. The answer for an
// entitlement that the ceiling does not have is the same whether or not it exists.
func (q *Query) Exceeds() string {
	c := q.Principal.Ceiling
	if c == nil || q.Action != ActionRequest || q.Entitlement == nil {
		return ""
	}
	return c.exceeds(q.Principal.ID, q.Entitlement.Name, q.Scopes)
}

func (c *Ceiling) exceeds(who, entitlement string, scopes []string) string {
	part, found := c.Part(entitlement)
	if !found {
		return fmt.Sprintf("the ceiling of %s does not have %s, so no policy can permit it", who, entitlement)
	}
	if above := part.above(scopes); len(above) > 0 {
		return fmt.Sprintf("the ceiling of %s has only %s of %s, so no policy can permit %s", who, strings.Join(part.Scopes, " "), entitlement, strings.Join(above, " "))
	}
	return ""
}

// NestLabels returns the labels with what those on broader paths bound: a narrower path
// gets another kind, team or purpose, but never a higher ceiling or a later end.
func NestLabels(labels []WorkloadLabels) []WorkloadLabels {
	nested := slices.Clone(labels)
	for i := range nested {
		for _, broader := range labels {
			if broader.Under != nested[i].Under && broader.Covers(nested[i].Under) {
				nested[i].Ceiling = nested[i].Ceiling.Intersect(broader.Ceiling)
				nested[i].Ends = earlier(nested[i].Ends, broader.Ends)
			}
		}
	}
	return nested
}

// Bounds of the texts of marks, in bytes.
const (
	MaxPurpose = 300
	MaxModel   = 128
)

// MarkKey names the facts about the workloads under a path of attest.workloads.
func MarkKey(under string) StandingKey { return StandingKey{FactMark, under} }

// unended adds the end of a workload's mark to what its access rests on, or refuses a
// workload whose mark has ended. The rules in force say so by themselves: the fact about the
// mark follows them, and ends what runs.
func (b *Broker) unended(ctx context.Context, rules *Rules, f *footing, who Identity, since, now time.Time) error {
	if who.Ends.IsZero() {
		return nil
	}
	f.until = earlier(f.until, who.Ends)
	if !now.Before(who.Ends) {
		return refuse(ErrFactEnded, fmt.Sprintf("access of %s ended at %s, as its mark in attest.workloads states", who.ID, who.Ends.UTC().Format(time.RFC3339)))
	}
	labels, _ := rules.LabelsOf(who.ID)
	_, err := b.check(ctx, f, MarkKey(labels.Under), since, now)
	return err
}
