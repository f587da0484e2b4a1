package brokertest

import (
	"errors"
	"sync"
	"testing"

	"accessbroker.internal/api"
)

// backchannelAsk asks for a token that needs no approval.
func backchannelAsk(ticket string) api.BackchannelRequest {
	return api.BackchannelRequest{LoginHint: Agent, TokenRequest: api.TokenRequest{Audience: "tickets-api", Scopes: []string{"tickets:read"}, Ticket: ticket}}
}

// A code is bound to the key that was proven when it was issued, and to the certificate of
// the client, but not to one of the certificates that the client gets one after the other.
func TestCodeIsBoundToTheKey(t *testing.T) {
	b := New(t)
	key := newProofKey(t)
	owner := withKey(b.Bearer(Agent), key)
	started, err := api.Backchannel{Client: owner}.Authorize(t.Context(), backchannelAsk("T-1"))
	if err != nil {
		t.Fatal(err)
	}
	poll := api.TokenRequest{AuthReqID: started.AuthReqID}
	for name, c := range map[string]*api.Client{
		"no key": b.Bearer(Agent), "a certificate": b.Client(Agent), "another key": withKey(b.Bearer(Agent), newProofKey(t)),
	} {
		var answer *api.Error
		if _, err := c.Exchange(t.Context(), poll); !errors.As(err, &answer) || answer.OAuth != "invalid_dpop_proof" {
			t.Errorf("polled with %s: got %v, want invalid_dpop_proof", name, err)
		}
		if err := c.RevokeToken(t.Context(), started.AuthReqID); !errors.As(err, &answer) || answer.OAuth != "invalid_dpop_proof" {
			t.Errorf("cancelled with %s: got %v, want invalid_dpop_proof", name, err)
		}
	}
	// The key does not tell another client that the code exists.
	var answer *api.Error
	if _, err := withKey(b.Bearer(Supplier), key).Exchange(t.Context(), poll); !errors.As(err, &answer) || answer.OAuth != "invalid_grant" {
		t.Errorf("polled by another client: got %v, want invalid_grant", err)
	}
	token, err := owner.Exchange(t.Context(), poll)
	if err != nil {
		t.Fatal(err)
	}
	b.Secret(string(token.AccessToken))
	if bound := claimsOf(t, string(token.AccessToken)).Confirm; token.TokenType != "DPoP" || bound == nil || bound.KeyThumbprint != key.Thumbprint() {
		t.Errorf("got a token of type %s that is bound to %v, want the key", token.TokenType, bound)
	}

	started, err = api.Backchannel{Client: b.Client(Agent)}.Authorize(t.Context(), backchannelAsk("T-2"))
	if err != nil {
		t.Fatal(err)
	}
	poll = api.TokenRequest{AuthReqID: started.AuthReqID}
	if _, err := b.Bearer(Agent).Exchange(t.Context(), poll); !errors.As(err, &answer) || answer.OAuth != "invalid_grant" {
		t.Errorf("polled without the certificate: got %v, want invalid_grant", err)
	}
	token, err = b.Client(Agent).Exchange(t.Context(), poll) // a new certificate
	if err != nil {
		t.Fatal(err)
	}
	b.Secret(string(token.AccessToken))
}

// Polls at the same time get one token.
func TestCodeYieldsOneToken(t *testing.T) {
	b := New(t)
	started, err := api.Backchannel{Client: b.Bearer(Agent)}.Authorize(t.Context(), backchannelAsk("T-1"))
	if err != nil {
		t.Fatal(err)
	}
	const polls = 16
	var group sync.WaitGroup
	tokens := make(chan string, polls)
	for range polls {
		c := b.Bearer(Agent)
		group.Go(func() {
			token, err := c.Exchange(t.Context(), api.TokenRequest{AuthReqID: started.AuthReqID})
			if err == nil {
				tokens <- string(token.AccessToken)
				return
			}
			var answer *api.Error
			if !errors.As(err, &answer) || answer.OAuth != "invalid_grant" {
				t.Errorf("got %v, want a token or invalid_grant", err)
			}
		})
	}
	group.Wait()
	close(tokens)
	count := 0
	for token := range tokens {
		b.Secret(token)
		count++
	}
	if count != 1 {
		t.Errorf("got %d tokens, want 1", count)
	}
}
