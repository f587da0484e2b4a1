package broker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
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

// Block places a block. Placing it twice is no error. A selector that matches nothing is
// refused unless the caller confirmed that.
func (b *Broker) Block(ctx context.Context, caller Caller, s Selector, reason string, unmatched bool) error {
	if err := b.mayBlock(ctx, caller); err != nil {
		return err
	}
	key, err := s.key()
	if err != nil {
		return err
	}
	if err := key.checkForm(); err != nil {
		return err
	}
	if live, err := b.matchesLease(ctx, s, caller.At); err != nil {
		return err
	} else if !live && s.Request.IsZero() {
		m, err := b.match(ctx, key)
		if err != nil {
			return err
		}
		if err := m.check(key, unmatched); err != nil {
			return err
		}
	}
	return b.setBlock(ctx, caller, s, reason, blockPlaced)
}

// Lift lifts a block. It returns ErrNotFound if there is none.
func (b *Broker) Lift(ctx context.Context, caller Caller, s Selector, reason string) error {
	err := b.setBlock(ctx, caller, s, reason, blockLifted)
	if !isNotFound(err) {
		return err
	}
	blocks, blocksErr := b.blocksInForce(ctx)
	for _, account := range b.rules.Load().People.Accounts(s.Holder) {
		if blocksErr == nil && blocks[BlockKey{"holder", account}] {
			return refuse(ErrNotFound, fmt.Sprintf("holder %s is not blocked, but another account of the same person is: lift the block on %s", s.Holder, account))
		}
	}
	return err
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
	if err := CheckText(ErrInvalidRequest, "reason", reason, MaxJustification); err != nil {
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
		return refuse(ErrNotFound, fmt.Sprintf("%s is not blocked", key))
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
// more leases were selected than one call handles. A kill switch that a process still works
// on is that process's.
func (b *Broker) resumeKills(ctx context.Context, now time.Time) {
	list, err := b.cfg.Blocks(ctx)
	if err != nil {
		if ctx.Err() == nil {
			b.cfg.Log.ErrorContext(ctx, "reading the blocks for unfinished kill switches", "err", err)
		}
		return
	}
	for _, block := range list {
		if block.Ends.IsZero() {
			continue
		}
		err := OnDuty(ctx, b.cfg.Duties, killDuty(block.Selector), func(ctx context.Context) error {
			_, unrecorded, err := b.endAll(ctx, Caller{At: now}, block.Selector.selector(), block.Reason)
			return errors.Join(err, unrecorded)
		})
		if err != nil {
			b.cfg.Log.ErrorContext(ctx, "continuing a kill switch", "selector", block.Selector.String(), "err", err)
		}
	}
}

// killDuty is the duty of one kill switch.
func killDuty(selector BlockKey) string { return "kill/" + selector.String() }

// resumeEvery is how often interrupted kill switches of other processes are continued.
const resumeEvery = 10 * time.Second

// resumeForever continues interrupted kill switches when the process starts and
// then once per KillDeadline, which a call that is still running may take. If other processes
// share the store, duties show which calls still run, and it looks more often.
func (b *Broker) resumeForever(ctx context.Context) {
	every := KillDeadline
	if b.cfg.Duties != Alone {
		every = resumeEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		_ = OnDuty(ctx, b.cfg.Duties, "kills", func(ctx context.Context) error {
			b.resumeKills(ctx, time.Now())
			return nil
		})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Blocked reports whether the kill switch blocks the caller altogether, not only
// single entitlements.
func (b *Broker) Blocked(ctx context.Context, caller Caller) (bool, error) {
	blocks, err := b.blocksInForce(ctx)
	return blocks.hit(b.rules.Load().WithLabels(caller.Subject), nil), err
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
	return slices.ContainsFunc(blockKeys(who, e), func(key Key) bool { return blocks[key.(BlockKey)] })
}

// Targets are the blocks in force, and names to choose from for the kill switch. Each list
// of names has at most maxTargets.
type Targets struct {
	Blocks       []*Block
	Holders      []string // of the newest live leases
	Entitlements []string
	Issuers      []string
	TrustDomains []string
}

const (
	maxTargets = 200
	targetPage = 1000 // live leases whose holders are listed
)

// Targets returns the blocks in force and the names that the kill switch can select.
func (b *Broker) Targets(ctx context.Context, caller Caller) (*Targets, error) {
	if err := b.mayBlock(ctx, caller); err != nil {
		return nil, err
	}
	blocks, err := b.cfg.Blocks(ctx)
	if err != nil {
		return nil, Unavailable(err)
	}
	live, _, err := b.page(ctx, LeaseQuery{Live: true, Now: caller.At, Limit: targetPage})
	if err != nil {
		return nil, err
	}
	var holders []string
	for _, l := range live {
		holders = append(holders, l.Holder)
	}
	rules := b.rules.Load()
	return &Targets{
		Blocks: blocks, Holders: targetNames(slices.Values(holders)), Entitlements: targetNames(maps.Keys(rules.Catalogue)),
		Issuers: targetNames(maps.Keys(b.cfg.Issuers)), TrustDomains: targetNames(slices.Values(rules.TrustDomains)),
	}, nil
}

// targetNames returns the names sorted, each once, up to maxTargets.
func targetNames(names iter.Seq[string]) []string {
	list := slices.Compact(slices.Sorted(names))
	return list[:min(len(list), maxTargets)]
}

// blockKeys returns the key of every block that would refuse an identity, with its
// labels, or an entitlement, each a BlockKey.
func blockKeys(who Identity, e *Entitlement) []Key {
	list := make([]Key, 0, len(who.Paths)+len(who.Accounts)+4)
	list = append(list, BlockKey{"holder", who.ID}, BlockKey{"trust_domain", who.TrustDomain})
	for _, account := range who.Accounts { // a block of one account blocks the person
		if account != who.ID {
			list = append(list, BlockKey{"holder", account})
		}
	}
	for _, p := range who.Paths {
		list = append(list, BlockKey{"under", p})
	}
	if e != nil {
		list = append(list, BlockKey{"entitlement", e.Name}, BlockKey{"issuer", e.Issuer})
	}
	return list
}

// CheckBlocks refuses what has a block in force; blocks are its BlockKeys. Every issuing transaction calls it, so
// that a block stops everything that is not committed before it.
func CheckBlocks(tx Tx, blocks []Key) error {
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
