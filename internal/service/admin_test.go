package service

import (
	"context"
	"errors"
	"net/http"
	"os"
	"testing"

	"accessbroker.internal/broker"
)

// On the admin socket, another proof would be one of another identity.
func TestOperatorSendsNoToken(t *testing.T) {
	r := (&http.Request{Header: http.Header{}}).WithContext(context.WithValue(t.Context(), peerKey{}, os.Geteuid()))
	if who, err := operatorAlone(r, ""); err != nil || who.Kind != broker.KindOperator {
		t.Errorf("without a token: got %+v, %v", who, err)
	}
	if _, err := operatorAlone(r, "", "x"); !errors.Is(err, broker.ErrTwoIdentities) {
		t.Errorf("with a token in the body: got %v, want %v", err, broker.ErrTwoIdentities)
	}
	r.Header.Set("Authorization", "Bearer x")
	if _, err := operatorAlone(r); !errors.Is(err, broker.ErrTwoIdentities) {
		t.Errorf("with a bearer token: got %v, want %v", err, broker.ErrTwoIdentities)
	}
}
