package verify

import (
	"fmt"
	"slices"

	"accessbroker.internal/audit"
)

// maxBulk bounds the verifier's memory of one decision in bulk. It is above what the broker
// writes: the author of a forged log chooses the number.
const maxBulk = 10_000

// campaignState checks the records of access reviews.
type campaignState struct {
	bulk     *audit.CampaignFacts // the first record of a decision in bulk; nil: none is open
	person   string
	items    []int64
	chosen   []int64
	restores map[string][]string // accounts of the person who asked to restore a permission
}

func newCampaignState() *campaignState { return &campaignState{restores: map[string][]string{}} }

// check returns what contradicts the earlier records, or "". signed reports whether the
// record has a valid signature.
func (s *campaignState) check(r *audit.Record, signed bool) string {
	if problem := s.continues(r); problem != "" {
		return problem
	}
	f := r.Campaign
	switch {
	case f == nil:
		return ""
	case r.Kind == audit.CampaignDecided && r.Caller == nil:
		return "no person decided on the item"
	case r.Kind == audit.CampaignDecided && f.Signed && !signed:
		return "the access review requires the signature of a passkey, and the decision has none that is valid"
	case r.Kind == audit.CampaignRestoring && r.Caller != nil:
		if len(s.restores) < maxBulk {
			s.restores[f.Permission] = accountsOf(r.Caller)
		}
	case r.Kind == audit.CampaignRestored:
		return s.restored(r)
	}
	return ""
}

// restored checks that two people restored a permission.
func (s *campaignState) restored(r *audit.Record) string {
	first, asked := s.restores[r.Campaign.Permission]
	delete(s.restores, r.Campaign.Permission)
	switch {
	case r.Caller == nil || !asked:
		return "no one asked to restore the permission before"
	case overlap(first, accountsOf(r.Caller)):
		return "one person alone restored the permission"
	}
	return ""
}

// continues collects the records of a decision in bulk, which follow each other, and checks
// the items for a second look once the last one was read.
func (s *campaignState) continues(r *audit.Record) string {
	f := r.Campaign
	bulk := r.Kind == audit.CampaignDecided && f != nil && !f.Seed.IsZero() && r.Caller != nil
	if s.bulk == nil && bulk {
		s.bulk, s.person, s.items, s.chosen = f, r.Caller.ID, nil, nil
		copied := *f
		s.bulk = &copied
	}
	if s.bulk == nil {
		return ""
	}
	if !bulk || f.Seed != s.bulk.Seed || f.ID != s.bulk.ID || f.Items != s.bulk.Items || r.Caller.ID != s.person {
		n, of := len(s.items), s.bulk.Items
		s.bulk = nil
		return fmt.Sprintf("the decision in bulk before it names %d items, and the log has %d of them", of, n)
	}
	if s.items = append(s.items, f.Item); f.Second {
		s.chosen = append(s.chosen, f.Item)
	}
	if f.Items > maxBulk {
		s.bulk = nil
		return fmt.Sprintf("a decision in bulk names %d items", f.Items)
	}
	if int64(len(s.items)) < f.Items {
		return ""
	}
	s.bulk = nil
	slices.Sort(s.chosen)
	if want := audit.SecondLook(f.Seed, s.items); !slices.Equal(s.chosen, want) {
		return fmt.Sprintf("the seed of the decision in bulk chooses the items %d for a second look, and the records %d", want, s.chosen)
	}
	return ""
}
