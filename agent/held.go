package agent

import (
	"context"
	"fmt"
	"time"

	"accessbroker.internal/api"
)

const (
	renewTimeout = 30 * time.Second
	// minLifetime is the shortest remaining time with which a credential is useful.
	minLifetime = 2 * time.Second
)

// Held is a credential in use by a consumer. The holder calls Renew whenever Due has
// passed and Return at the end. Held is not safe for concurrent use.
type Held struct {
	Client     *api.Client
	Credential *api.Credential

	// Replace passes a renewed credential to the consumer. If it is nil, the
	// consumer can't change its credential, and the credential is not renewed.
	Replace func(*api.Credential) error

	refused bool // the broker will not renew it
}

// Renewable reports whether Renew will try to renew the credential.
func (h *Held) Renewable() bool { return h.Replace != nil && !h.refused }

// Due returns the time until the next call of Renew: two thirds of the remaining
// lifetime, or all of it if the credential is not renewable.
func (h *Held) Due() time.Duration {
	left := time.Until(h.Credential.ExpiresAt)
	if h.Renewable() {
		left = left * 2 / 3
	}
	return max(left, time.Second)
}

// Renew replaces the credential and reports whether the consumer still has one that
// works. After a failure the old credential works until it expires; Renew tries
// again after a transient failure, but not after a refusal.
func (h *Held) Renew(ctx context.Context) (usable bool, err error) {
	if !h.Renewable() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	renewed, err := h.Client.Renew(ctx, h.Credential.Lease)
	if err != nil {
		h.refused = !api.Transient(err)
		return time.Until(h.Credential.ExpiresAt) > minLifetime, fmt.Errorf("renewing the credential: %w", err)
	}
	h.Credential = renewed
	if err := h.Replace(renewed); err != nil {
		return false, err // the broker has revoked the old one
	}
	return true, nil
}

// Return returns the lease of the credential that the consumer had last.
func (h *Held) Return(ctx context.Context, reason string) error {
	return Return(ctx, h.Client, h.Credential, reason)
}
