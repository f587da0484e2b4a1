//go:build !linux

package inbound

import "context"

// Drain does nothing: on this system, closing the listener resets the connections that
// wait to be accepted.
func (l *Listener) Drain(context.Context) error { return nil }
