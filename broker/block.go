package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A blockState is what a block is changed to.
type blockState uint8

const (
	blockOff    blockState = iota
	blockOn                // nothing more is issued
	blockAndEnd            // and what is live is ended
)

// Block places a block. Placing it twice is no error.
func (b *Broker) Block(ctx context.Context, caller Caller, s Selector, reason string) error {
	if key, err := s.key(); err == nil {
		if err := b.known(key); err != nil {
			return err
		}
	}
	return b.setBlock(ctx, caller, s, reason, blockOn)
}

// Lift lifts a block; lifting what is not blocked is ErrNotFound.
func (b *Broker) Lift(ctx context.Context, caller Caller, s Selector, reason string) error {
	return b.setBlock(ctx, caller, s, reason, blockOff)
}

func (b *Broker) setBlock(ctx context.Context, caller Caller, s Selector, reason string, to blockState) error {
	if err := b.mayBlock(ctx, caller); err != nil {
		return err
	}
	key, err := s.key()
	if err != nil {
		return err
	}
	if key.Kind == "request" {
		return refuse(ErrInvalidRequest, "a request can't be blocked: revoke it, or block its holder")
	}
	if reason, err = checkReason(reason); err != nil {
		return err
	}
	digest, opening := audit.Commit(reason)
	record := audit.Record{
		Kind: audit.BlockPlaced, Caller: caller.Actor.Party(), Openings: map[string]audit.Opening{"reason": opening},
		Block: &audit.BlockFacts{Selector: key.String(), Reason: digest},
	}
	if to == blockOff {
		record.Kind = audit.BlockLifted
	}
	_, err = b.write(ctx, []Key{key}, record, func(tx Tx) error { return switchBlock(tx, key, caller, reason, to) })
	if errors.Is(err, ErrUnchanged) {
		return nil
	}
	return err
}

// checkReason gives a reason that the kill switch takes: there must be one.
func checkReason(reason string) (string, error) {
	if err := checkText(ErrInvalidRequest, "reason", reason, MaxJustification); err != nil {
		return "", err
	}
	if reason = strings.TrimSpace(reason); reason == "" {
		return "", refuse(ErrJustificationRequired, "say why")
	}
	return reason, nil
}

func switchBlock(tx Tx, key BlockKey, caller Caller, reason string, to blockState) error {
	now := caller.At
	row, err := Get[*Block](tx, key)
	if ignoreNotFound(err) != nil {
		return err
	}
	inForce := err == nil && row.Lifted.IsZero()
	switch {
	case to == blockOff && !inForce:
		return refuse(ErrNotFound, fmt.Sprintf("%s is not blocked", key))
	case to == blockOff:
		row.Lifted, row.Ends = now, time.Time{}
	case to == blockOn && inForce:
		return ErrUnchanged
	case !inForce:
		row = &Block{Selector: key, Reason: reason, By: caller.Actor.ID, Since: now}
	}
	if to == blockAndEnd {
		row.Ends = now
	}
	tx.Put(row)
	return nil
}

// allEnded notes that what a block selects has been ended. That is no change of
// state, and has no record.
func (b *Broker) allEnded(ctx context.Context, s Selector) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	return Unavailable(b.cfg.Store.Update(ctx, []Key{key}, func(tx Tx) error {
		row, err := Get[*Block](tx, key)
		if err != nil || row.Ends.IsZero() {
			return ignoreNotFound(err)
		}
		row.Ends = time.Time{}
		tx.Put(row)
		return nil
	}))
}

// resumeKills goes on with what the kill switch began and did not bring to its
// end: the process died, or there was more than one call looks at.
func (b *Broker) resumeKills(ctx context.Context, now time.Time) {
	list, err := b.cfg.Blocks(ctx)
	if err != nil {
		b.cfg.Log.ErrorContext(ctx, "looking for what the kill switch left to end", "err", err)
		return
	}
	for _, block := range list {
		if block.Ends.IsZero() {
			continue
		}
		if _, unmarked, err := b.endAll(ctx, Caller{At: now}, block.Selector.selector(), block.Reason); err != nil || unmarked != nil {
			b.cfg.Log.ErrorContext(ctx, "going on with what the kill switch began", "selector", block.Selector.String(), "err", errors.Join(err, unmarked))
		}
	}
}

// resumeForever continues interrupted kill switches when the process starts and
// then once per KillDeadline, which a call that is still running may take.
func (b *Broker) resumeForever(ctx context.Context) {
	tick := time.NewTicker(KillDeadline)
	defer tick.Stop()
	for {
		b.resumeKills(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// selector is what the key was made of.
func (k BlockKey) selector() (s Selector) {
	switch k.Kind {
	case "holder":
		s.Holder = k.Name
	case "under":
		s.Under = k.Name
	case "trust_domain":
		s.TrustDomain = k.Name
	case "entitlement":
		s.Entitlement = k.Name
	case "issuer":
		s.Issuer = k.Name
	}
	return s
}

// Blocked says whether the kill switch keeps the caller from everything, and not
// from single entitlements alone.
func (b *Broker) Blocked(ctx context.Context, caller Caller) (bool, error) {
	blocks, err := b.blocksInForce(ctx)
	return blocks.hit(caller.Subject, nil), err
}

// A blockSet are the blocks in force, for telling people of them. What issues
// looks at each in its own transaction: see CheckBlocks.
type blockSet map[BlockKey]bool

func (b *Broker) blocksInForce(ctx context.Context) (blockSet, error) {
	list, err := b.cfg.Blocks(ctx)
	if err != nil {
		return nil, Unavailable(err)
	}
	blocks := blockSet{}
	for _, block := range list {
		blocks[block.Selector] = true
	}
	return blocks, nil
}

func (blocks blockSet) hit(who Identity, e *Entitlement) bool {
	return slices.ContainsFunc(blockKeys(who, e), func(key BlockKey) bool { return blocks[key] })
}

// Blocks lists the blocks in force.
func (b *Broker) Blocks(ctx context.Context, caller Caller) ([]*Block, error) {
	if err := b.mayBlock(ctx, caller); err != nil {
		return nil, err
	}
	list, err := b.cfg.Blocks(ctx)
	return list, Unavailable(err)
}
