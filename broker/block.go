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

// A blockState is the state that a change gives to a block.
type blockState uint8

const (
	blockLifted  blockState = iota
	blockPlaced             // nothing more is issued
	blockKilling            // and live leases are being ended
)

// Block places a block. Placing it twice is no error.
func (b *Broker) Block(ctx context.Context, caller Caller, s Selector, reason string) error {
	if key, err := s.key(); err == nil {
		if err := b.checkExists(key); err != nil {
			return err
		}
	}
	return b.setBlock(ctx, caller, s, reason, blockPlaced)
}

// Lift lifts a block. It returns ErrNotFound if there is none.
func (b *Broker) Lift(ctx context.Context, caller Caller, s Selector, reason string) error {
	return b.setBlock(ctx, caller, s, reason, blockLifted)
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
		return refuse(ErrInvalidRequest, "a request cannot be blocked: revoke it, or block its holder")
	}
	if reason, err = checkReason(reason); err != nil {
		return err
	}
	digest, opening := audit.Commit(reason)
	record := audit.Record{
		Kind: audit.BlockPlaced, Caller: caller.Actor.Party(), Openings: map[string]audit.Opening{"reason": opening},
		Block: &audit.BlockFacts{Selector: key.String(), Reason: digest},
	}
	if to == blockLifted {
		record.Kind = audit.BlockLifted
	}
	_, err = b.write(ctx, []Key{key}, record, func(tx Tx) error { return changeBlock(tx, key, caller, reason, to) })
	if errors.Is(err, ErrUnchanged) {
		return nil
	}
	return err
}

// checkReason returns the trimmed reason, which must not be empty.
func checkReason(reason string) (string, error) {
	if err := checkText(ErrInvalidRequest, "reason", reason, MaxJustification); err != nil {
		return "", err
	}
	if reason = strings.TrimSpace(reason); reason == "" {
		return "", refuse(ErrJustificationRequired, "give a reason")
	}
	return reason, nil
}

func changeBlock(tx Tx, key BlockKey, caller Caller, reason string, to blockState) error {
	now := caller.At
	row, err := Get[*Block](tx, key)
	if ignoreNotFound(err) != nil {
		return err
	}
	inForce := err == nil && row.Lifted.IsZero()
	switch {
	case to == blockLifted && !inForce:
		return refuse(ErrNotFound, fmt.Sprintf("there is no block on %s", key))
	case to == blockLifted:
		row.Lifted, row.Ends = now, time.Time{}
	case to == blockPlaced && inForce:
		return ErrUnchanged
	case !inForce:
		row = &Block{Selector: key, Reason: reason, By: caller.Actor.ID, Since: now}
	}
	if to == blockKilling {
		row.Ends = now
	}
	tx.Put(row)
	return nil
}

// markKillDone notes that a block's selection has been ended. That is not a state
// change and has no record.
func (b *Broker) markKillDone(ctx context.Context, s Selector) error {
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

// resumeKills continues kill switches that did not finish: the process died, or
// more leases were selected than one call handles.
func (b *Broker) resumeKills(ctx context.Context, now time.Time) {
	list, err := b.cfg.Blocks(ctx)
	if err != nil {
		b.cfg.Log.ErrorContext(ctx, "looking for unfinished kill switches", "err", err)
		return
	}
	for _, block := range list {
		if block.Ends.IsZero() {
			continue
		}
		if _, unrecorded, err := b.endAll(ctx, Caller{At: now}, block.Selector.selector(), block.Reason); err != nil || unrecorded != nil {
			b.cfg.Log.ErrorContext(ctx, "continuing a kill switch", "selector", block.Selector.String(), "err", errors.Join(err, unrecorded))
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

// selector returns the selector that the key was made from.
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

// Blocked reports whether the kill switch blocks the caller altogether, not only
// single entitlements.
func (b *Broker) Blocked(ctx context.Context, caller Caller) (bool, error) {
	blocks, err := b.blocksInForce(ctx)
	return blocks.hit(caller.Subject, nil), err
}

// A blockSet is the set of blocks in force, for display only. Issuing checks
// blocks in its own transaction: see CheckBlocks.
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

// Blocks returns the blocks in force.
func (b *Broker) Blocks(ctx context.Context, caller Caller) ([]*Block, error) {
	if err := b.mayBlock(ctx, caller); err != nil {
		return nil, err
	}
	list, err := b.cfg.Blocks(ctx)
	return list, Unavailable(err)
}

// blockKeys returns the key of every block that would refuse an identity or an
// entitlement.
func blockKeys(who Identity, e *Entitlement) []BlockKey {
	list := make([]BlockKey, 0, len(who.Paths)+4)
	list = append(list, BlockKey{"holder", who.ID}, BlockKey{"trust_domain", who.TrustDomain})
	for _, p := range who.Paths {
		list = append(list, BlockKey{"under", p})
	}
	if e != nil {
		list = append(list, BlockKey{"entitlement", e.Name}, BlockKey{"issuer", e.Issuer})
	}
	return list
}

// CheckBlocks refuses what is blocked. Every issuing transaction calls it, so
// that a block stops everything that is not committed before it.
func CheckBlocks(tx Tx, blocks []BlockKey) error {
	for _, key := range blocks {
		block, err := Get[*Block](tx, key)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if block.Lifted.IsZero() {
			return refuse(ErrBlocked, "access is blocked until an operator lifts the block")
		}
	}
	return nil
}
