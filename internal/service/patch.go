package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

// reviewPatch proposes the change for git that suspensions ask for. Paths in the patch begin
// at the policy folder. The notes name what the patch leaves out.
func (s *Service) reviewPatch(ctx context.Context, of []*broker.SuspensionRow) (patch string, notes []string, err error) {
	s.reload.Lock()
	engine := s.engine
	s.reload.Unlock()
	var changes []policy.Prune
	for _, row := range of {
		key := broker.PermissionKey(row.SuspensionKey)
		if _, ok := engine.Find(key); !ok {
			continue // git has the change already
		}
		switch key.Kind {
		case broker.PermissionPermit:
			changes = append(changes, policy.Prune{Policy: key.Name, Keep: row.Left})
		case broker.PermissionMember:
			group, member, _ := strings.Cut(key.Name, " ")
			changes = append(changes, policy.Prune{Group: group, Member: member})
		case broker.PermissionSupplier:
			notes = append(notes, fmt.Sprintf("not in the patch: change the ceiling of supplier %s in suppliers.yaml", key.Name))
		default:
			notes = append(notes, fmt.Sprintf("not in the patch: remove the entry under %s of attest.workloads in the operator's file", key.Name))
		}
	}
	if len(changes) == 0 {
		return "", notes, nil
	}
	p, err := engine.ProposeDecided(ctx, changes)
	if err != nil {
		return "", nil, err
	}
	for _, l := range p.Left {
		notes = append(notes, fmt.Sprintf("not in the patch: %s: %s", l, l.Why))
	}
	for _, f := range p.Files {
		patch += fmt.Sprintf("diff --git a/%[1]s b/%[1]s\n--- a/%[1]s\n+++ b/%[1]s\n%[2]s", f.Name, f.Hunks)
	}
	return patch, notes, nil
}

// Suspensions returns what access reviews suspend, from the database of a configuration, which
// a broker may be using. There are none if there is no database yet.
func Suspensions(ctx context.Context, c *config.Config) (list []broker.Suspension, err error) {
	source, err := store.OpenSource(ctx, c.Store)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	rows, err := source.Suspensions(ctx)
	for _, row := range rows {
		list = append(list, row.Suspension())
	}
	return list, err
}
