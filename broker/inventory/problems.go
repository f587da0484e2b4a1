package inventory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// A Problem is a reason to look at an identity.
type Problem struct {
	Code ProblemCode
	Text string
}

// A ProblemCode is the kind of a problem.
type ProblemCode string

// The kinds of problems.
const (
	ProblemOrphan     ProblemCode = "orphan"      // no accountable person is left
	ProblemOwnerLeft  ProblemCode = "owner_left"  // an accountable person has left, and another is there
	ProblemNoOwner    ProblemCode = "no_owner"    // an agent without an accountable person
	ProblemEnded      ProblemCode = "ended"       // its access has ended, and the rules still name it
	ProblemNeverUsed  ProblemCode = "never_used"  // it may request access and never got a credential
	ProblemUnused     ProblemCode = "unused"      // it may request access and got no credential for 90 days
	ProblemBroad      ProblemCode = "broad"       // its permits are much broader than its use
	ProblemManyPlaces ProblemCode = "many_places" // one SPIFFE ID from many places
)

// ProblemCodes returns the codes, the most serious first.
func ProblemCodes() []ProblemCode {
	return []ProblemCode{ProblemOrphan, ProblemOwnerLeft, ProblemNoOwner, ProblemEnded, ProblemManyPlaces, ProblemNeverUsed, ProblemUnused, ProblemBroad}
}

const (
	unusedDays = 90 // without a credential make an identity unused

	// Permits are much broader than the use if they grant at least broadParts scopes and
	// at most 1 in broadRatio was used.
	broadParts = 5
	broadRatio = 4

	placesDays = 1 // in which places are counted
)

// judge finds the identity's problems, the most serious first.
func (v *Inventory) judge(ctx context.Context, i *Identity, now time.Time) error {
	i.Problems = nil
	report := func(code ProblemCode, format string, args ...any) {
		i.Problems = append(i.Problems, Problem{code, fmt.Sprintf(format, args...)})
	}
	if err := v.judgeOwners(ctx, i, now, report); err != nil {
		return err
	}
	if i.Ended != "" && len(i.Named) > 0 {
		report(ProblemEnded, "access has ended (%s), and the rules still name it in %s", i.Ended, strings.Join(i.Named, ", "))
	}
	if i.Kind != broker.KindPerson && i.Seen != nil {
		if n := i.Seen.Places.Since(now.AddDate(0, 0, -placesDays)); n > v.cfg.Places {
			report(ProblemManyPlaces, "its requests came from %s addresses within a day", atLeast(n, MaxPlaces))
		}
	}
	switch last := i.LastUsed(); {
	case i.Permitted == 0:
	case last.IsZero():
		report(ProblemNeverUsed, "it may request %s and never got a credential", counted(i.Permitted, "scope"))
	case last.Before(now.AddDate(0, 0, -unusedDays)):
		report(ProblemUnused, "it got its last credential on %s", last.UTC().Format(time.DateOnly))
	case i.Permitted >= broadParts && i.Used*broadRatio <= i.Permitted:
		report(ProblemBroad, "it used %d of the %d scopes that it may request in %d days", i.Used, i.Permitted, unusedDays)
	}
	return nil
}

// judgeOwners finds out whether the people who are accountable for a workload are there.
func (v *Inventory) judgeOwners(ctx context.Context, i *Identity, now time.Time, report func(ProblemCode, string, ...any)) error {
	if i.Kind == broker.KindPerson {
		return nil
	}
	var left []string
	for _, person := range i.Accountable {
		gone, err := v.hasLeft(ctx, person, now)
		if err != nil {
			return err
		}
		if gone {
			left = append(left, person)
		}
	}
	switch {
	case len(i.Accountable) == 0 && i.Kind == broker.KindAgent:
		report(ProblemNoOwner, "no person is accountable for this agent: list one in attest.workloads")
	case len(left) == 0:
	case len(left) == len(i.Accountable):
		report(ProblemOrphan, "everyone who was accountable has left: %s", strings.Join(left, ", "))
	default:
		report(ProblemOwnerLeft, "%s left", strings.Join(left, ", "))
	}
	return nil
}

// hasLeft reports whether a source states that a person has ended, with any account. A source
// that is silent, or does not know the person, states nothing.
func (v *Inventory) hasLeft(ctx context.Context, person string, now time.Time) (bool, error) {
	facts := v.cfg.Broker.Facts
	rules := v.cfg.Broker.Rules()
	for _, account := range rules.People.Accounts(person) {
		if ends := rules.PersonEnds[account].Ends; !ends.IsZero() && !now.Before(ends) {
			return true, nil
		}
		s, err := facts.Standing(ctx, broker.StandingKey{Kind: broker.FactPerson, Name: account})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return false, err
		}
		switch facts.Fault(s, now) {
		case "", broker.CauseStale, broker.CauseNotBegun, broker.CauseUnknown:
		default:
			return true, nil
		}
	}
	return false, nil
}

// Has reports whether the identity has a problem; any if the code is empty.
func (i *Identity) Has(code ProblemCode) bool {
	for _, p := range i.Problems {
		if code == "" || p.Code == code {
			return true
		}
	}
	return false
}

func atLeast(n, most int) string {
	if n >= most {
		return fmt.Sprintf("%d or more", most)
	}
	return fmt.Sprint(n)
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func isNotFound(err error) bool { return errors.Is(err, broker.ErrNotFound) }
