package brokertest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"accessbroker.internal/api"
)

// A token is inactive for its resource server as soon as the call that revoked it has
// returned, although other introspections keep its lease in memory.
func TestTokensAreInactiveAtOnce(t *testing.T) {
	t.Parallel()
	b := New(t)
	const workers, steps = 6, 10
	var reads atomic.Int64
	var group sync.WaitGroup
	for w := range workers {
		id := fmt.Sprintf("spiffe://acme.test/agent/w%d", w)
		holder, server := b.Client(id), b.Client(Tickets)
		group.Go(func() {
			for step := range steps {
				token, err := holder.Exchange(t.Context(), api.TokenRequest{Audience: "tickets-api", Scopes: []string{"tickets:read"}})
				if err != nil {
					t.Error(err)
					return
				}
				b.Secret(string(token.AccessToken))
				if err := endUnderLoad(t, server, holder, token.AccessToken, step, &reads); err != nil {
					t.Errorf("worker %d, step %d: %v", w, step, err)
					return
				}
			}
		})
	}
	group.Wait()
	if reads.Load() < workers*steps {
		t.Errorf("only %d introspections ran meanwhile", reads.Load())
	}
}

// endUnderLoad ends a token while others introspect it, and introspects it then.
func endUnderLoad(t *testing.T, server, holder *api.Client, token api.Token, step int, reads *atomic.Int64) error {
	ctx := t.Context()
	for range 2 { // from the database, then from memory
		if in, err := server.Introspect(ctx, token); err != nil || !in.Active {
			return fmt.Errorf("a new token: got %+v, %v", in, err)
		}
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	defer readers.Wait()
	defer close(done)
	for range 2 {
		readers.Go(func() {
			for {
				if _, err := server.Introspect(ctx, token); err != nil {
					t.Error(err)
					return
				}
				reads.Add(1)
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	in, err := server.Introspect(ctx, token)
	if err != nil || !in.Active {
		return fmt.Errorf("a token that is not revoked: got %+v, %v", in, err)
	}
	if step%2 == 0 {
		err = holder.RevokeToken(ctx, token)
	} else {
		_, err = holder.Revoke(ctx, in.ID, "done")
	}
	if err != nil {
		return err
	}
	for range 5 {
		if in, err := server.Introspect(ctx, token); err != nil || in.Active {
			return fmt.Errorf("a revoked token: got %+v, %v", in, err)
		}
	}
	return nil
}
