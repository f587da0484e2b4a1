package campaign

import (
	"context"
	"fmt"
	"slices"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// MaxBulk is the number of items that one decision may keep.
const MaxBulk = 200

// A Seen item is one that a person saw, with the digest of its permission.
type Seen struct {
	Number int
	Digest audit.Digest
}

// KeepAll keeps many items of a campaign in one decision. The records mark each of them as
// decided in bulk. A random tenth, by a seed in the records, asks for a second look: they
// wait again, and can't be decided in bulk. Either all items are kept or none.
func (m *Manager) KeepAll(ctx context.Context, caller broker.Caller, id broker.CampaignID, list []Seen, reason string) (second []int, err error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	switch {
	case len(list) == 0:
		return nil, refuse(broker.ErrInvalidRequest, "select at least one item")
	case len(list) > MaxBulk:
		return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("one decision keeps at most %d items", MaxBulk))
	}
	err = retry(func() (err error) {
		second, err = m.keepAll(ctx, caller, id, list, reason)
		return err
	})
	return second, err
}

func (m *Manager) keepAll(ctx context.Context, caller broker.Caller, id broker.CampaignID, list []Seen, reason string) ([]int, error) {
	ground, err := m.cfg.Ground(ctx, &caller)
	if err != nil {
		return nil, err
	}
	var a *assigner
	var ballots []*ballot
	var numbers []int64
	for _, seen := range list {
		c, i, err := m.open(ctx, broker.ReviewItemKey{Campaign: id, Number: seen.Number}, caller.At)
		if err != nil {
			return nil, err
		}
		if a == nil {
			a = m.assigner(ground.Rules, &c.Plan)
		}
		if i.Status == broker.ReviewSecond {
			return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("item %d asks for a second look: decide on it alone", i.Number))
		}
		b, err := m.prepareItem(ctx, caller, a, c, i, Decision{Verdict: broker.VerdictKeep, Digest: seen.Digest, Reason: reason})
		if err != nil {
			return nil, err
		}
		if b.item.Signed {
			return nil, refuse(broker.ErrSignatureRequired, fmt.Sprintf("item %d needs a signed decision: decide on it alone", i.Number))
		}
		if slices.Contains(numbers, int64(i.Number)) {
			return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("item %d is listed twice", i.Number))
		}
		ballots, numbers = append(ballots, b), append(numbers, int64(i.Number))
	}
	seed := broker.NewNonce()
	chosen := audit.SecondLook(seed, numbers)
	var second []int
	for _, b := range ballots {
		b.of = len(ballots)
		b.item.Decision.Bulk, b.item.Decision.Seed = true, seed
		if slices.Contains(chosen, int64(b.item.Number)) {
			b.item.Status = broker.ReviewSecond
			second = append(second, b.item.Number)
		}
	}
	slices.Sort(second)
	return second, m.recordAll(ctx, caller, ground, id, ballots)
}
