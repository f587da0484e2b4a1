package service

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

// The admin socket is for root and the broker's own user, on the broker's machine. It
// works while the identity provider is down. Records name its caller
// "admin-socket/<user id>".

// A SigningKey is a key that signs tokens, as the admin socket lists it.
type SigningKey struct {
	ID        string    `json:"id"`
	KID       string    `json:"kid"`
	Algorithm string    `json:"algorithm"`
	Published time.Time `json:"published_at"`
	Signs     time.Time `json:"signs_from"`
	Retires   time.Time `json:"retires_at,omitzero"`
}

// A Peer is the process at the other end of a Unix socket.
type Peer struct {
	UID int
	PID int // zero: unknown on this system
}

type peerKey struct{}

// adminContext stores the peer's user ID for operatorOf.
func adminContext(ctx context.Context, c net.Conn) context.Context {
	peer, err := PeerOf(c)
	if err != nil {
		peer.UID = -1
	}
	return context.WithValue(ctx, peerKey{}, peer.UID)
}

// operatorOf returns the identity of a caller on the admin socket: root, or the user
// that the broker runs as. The socket's mode keeps others out; this check is the
// second wall.
func operatorOf(r *http.Request) (broker.Identity, error) {
	uid, ok := r.Context().Value(peerKey{}).(int)
	if !ok || uid != 0 && uid != os.Geteuid() {
		return broker.Identity{}, &broker.Refusal{Err: broker.ErrUnauthenticated, Detail: "the admin socket is for root and the broker's own user"}
	}
	return broker.Identity{
		ID: fmt.Sprintf("admin-socket/%d", uid), Kind: broker.KindOperator,
		Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: time.Now().Add(time.Hour)},
	}, nil
}

// operatorAlone is operatorOf for calls without another proof, which would be one of
// another identity.
func operatorAlone(r *http.Request, tokens ...string) (broker.Identity, error) {
	if len(r.Header.Values("Authorization")) > 0 || slices.ContainsFunc(tokens, func(t string) bool { return t != "" }) {
		return broker.Identity{}, &broker.Refusal{Err: broker.ErrTwoIdentities, Detail: "the admin socket identifies the operator: send no token"}
	}
	return operatorOf(r)
}

// adminHandler serves the operations of the broker's process, and rest for all other
// paths.
func (s *Service) adminHandler(rest http.Handler) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(context.Context, broker.Identity) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			who, err := operatorOf(r)
			var answer any
			if err == nil {
				answer, err = f(r.Context(), who)
			}
			status := http.StatusOK
			if err != nil {
				status, answer = http.StatusUnprocessableEntity, map[string]string{"error": err.Error()}
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	handle("POST /admin/reload", func(ctx context.Context, who broker.Identity) (any, error) {
		revision, err := s.Reload(ctx, who)
		return map[string]string{"revision": revision}, err
	})
	handle("POST /admin/keys/reseal", func(ctx context.Context, _ broker.Identity) (any, error) {
		n, err := s.resealKeys(ctx)
		return map[string]int{"resealed": n}, err
	})
	handle("GET /admin/keys", func(context.Context, broker.Identity) (any, error) { return s.listKeys(), nil })
	handle("GET /admin/replicas", func(ctx context.Context, _ broker.Identity) (any, error) { return s.listReplicas(ctx) })
	s.handleSCIM(mux)
	mux.Handle("/", rest)
	return mux
}

// resealKeys seals every key with the first seal key and returns how many were sealed
// with another one before.
func (s *Service) resealKeys(ctx context.Context) (int, error) {
	n, err := s.keys.Reseal(ctx)
	if err != nil {
		return n, err
	}
	done, err := s.publisher.reseal(ctx, s.sealer)
	if done {
		n++
	}
	return n, err
}

func (s *Service) listKeys() []SigningKey {
	list := []SigningKey{}
	for _, k := range s.keys.List() {
		list = append(list, SigningKey(k))
	}
	return list
}
