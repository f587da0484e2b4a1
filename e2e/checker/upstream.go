package checker

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// An upstream is a Vault, as far as the broker uses one. It remembers every credential that
// it made. Now and then it is slow, or loses an answer.
type upstream struct {
	server *http.Server
	at     string // its address

	mu     sync.Mutex
	random *mathrand.Rand
	calm   bool
	tokens map[string]*Upstream // by accessor: the credential that the token may make
	byKey  map[string]string    // accessors, by token
	all    []*Upstream          // that were made
}

// startUpstream serves an upstream on loopback until close.
func startUpstream(seed uint64) (*upstream, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the upstream: %w", err)
	}
	u := &upstream{at: l.Addr().String(), random: mathrand.New(mathrand.NewPCG(seed, 2)), tokens: map[string]*Upstream{}, byKey: map[string]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/auth/token/create/broker-leases", u.create)
	mux.HandleFunc("POST /v1/auth/token/create/broker-leases", u.create)
	mux.HandleFunc("GET /v1/database/creds/orders", u.credential)
	mux.HandleFunc("PUT /v1/auth/token/revoke-accessor", u.revoke)
	mux.HandleFunc("POST /v1/auth/token/revoke-accessor", u.revoke)
	mux.HandleFunc("PUT /v1/sys/leases/revoke", u.revoke)
	mux.HandleFunc("POST /v1/sys/leases/revoke", u.revoke)
	u.server = &http.Server{Handler: u.disturb(mux), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = u.server.Serve(l) }()
	return u, nil
}

func (u *upstream) close() { _ = u.server.Close() }

// settle ends the disturbances.
func (u *upstream) settle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calm = true
}

// made returns everything that the upstream has made.
func (u *upstream) made() (list []Upstream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, m := range u.all {
		list = append(list, *m)
	}
	return list
}

// disturb delays some answers and loses others: then the broker does not know whether a
// credential exists.
func (u *upstream) disturb(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		pause, lost := time.Duration(u.random.ExpFloat64()*5)*time.Millisecond, u.random.IntN(20) == 0
		if u.calm {
			pause, lost = 0, false
		}
		u.mu.Unlock()
		time.Sleep(pause)
		if !lost {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(&discarded{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	})
}

// A discarded answer reaches no one.
type discarded struct{ header http.Header }

func (d *discarded) Header() http.Header         { return d.header }
func (d *discarded) Write(b []byte) (int, error) { return len(b), nil }
func (d *discarded) WriteHeader(int)             {}

type object = map[string]any

func answer(w http.ResponseWriter, status int, body object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error means that the broker has gone
}

// create makes the token of a lease. If the broker does not get the answer, no one knows the
// token, and it makes no credential.
func (u *upstream) create(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		TTL  string            `json:"explicit_max_ttl"`
		Meta map[string]string `json:"meta"`
	}
	err := json.NewDecoder(r.Body).Decode(&ask)
	ttl, unreadable := time.ParseDuration(ask.TTL)
	if err != nil || unreadable != nil || ask.Meta["lease"] == "" {
		answer(w, http.StatusBadRequest, object{"errors": []string{"unreadable"}})
		return
	}
	m := &Upstream{Lease: ask.Meta["lease"], Expires: time.Now().UTC().Add(ttl)}
	token, accessor := "hvs."+rand.Text(), rand.Text()
	u.mu.Lock()
	u.tokens[accessor], u.byKey[token] = m, accessor
	u.mu.Unlock()
	answer(w, http.StatusOK, object{"auth": object{
		"client_token": token, "accessor": accessor, "lease_duration": int(ttl / time.Second), "renewable": false, "orphan": true,
	}})
}

// credential makes a user with the token of a lease. Its end is that of the token.
func (u *upstream) credential(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	accessor := u.byKey[r.Header.Get("X-Vault-Token")]
	m := u.tokens[accessor]
	known := m != nil && m.Ended.IsZero() && m.Made.IsZero()
	if known {
		m.Made, u.all = time.Now().UTC(), append(u.all, m)
	}
	u.mu.Unlock()
	if !known {
		answer(w, http.StatusForbidden, object{"errors": []string{"permission denied; invalid token"}})
		return
	}
	answer(w, http.StatusOK, object{
		"lease_id": "database/creds/orders/" + accessor, "lease_duration": int(time.Until(m.Expires) / time.Second),
		"data": object{"username": "v-" + accessor, "password": rand.Text()},
	})
}

// revoke ends the credential of a lease, by its accessor or by the name of its user.
func (u *upstream) revoke(w http.ResponseWriter, r *http.Request) {
	var ask struct {
		Accessor string `json:"accessor"`
		Lease    string `json:"lease_id"`
	}
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		answer(w, http.StatusBadRequest, object{"errors": []string{"unreadable"}})
		return
	}
	if ask.Lease != "" {
		w.WriteHeader(http.StatusNoContent) // the user ends with its token, which is revoked next
		return
	}
	u.mu.Lock()
	m := u.tokens[ask.Accessor]
	if m != nil && m.Ended.IsZero() {
		m.Ended = time.Now().UTC()
	}
	u.mu.Unlock()
	if m == nil {
		answer(w, http.StatusBadRequest, object{"errors": []string{"invalid accessor"}})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
