package service

import (
	"context"

	"accessbroker.internal/broker"
)

// reviewPatch proposes the change for git that suspensions ask for.
func (s *Service) reviewPatch(ctx context.Context, of []*broker.SuspensionRow) (patch string, notes []string, err error) {
	return "", nil, nil
}
