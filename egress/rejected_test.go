package egress_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// A replaced has a second credential once the first one was rejected.
type replaced struct {
	rejections int
	useless    bool // the second one is rejected, too
}

func (r *replaced) Credential(context.Context, string) (*api.Credential, error) {
	return &api.Credential{Lease: fmt.Sprint("lse_", r.rejections), Secret: api.Secret{"token": fmt.Sprint("a-long-token-", r.rejections)}, ExpiresAt: time.Now().Add(time.Hour)}, nil
}

func (r *replaced) Held() []*api.Credential { return nil }

func (r *replaced) Rejected(_ context.Context, c *api.Credential) bool {
	r.rejections++
	return c.Lease == "lse_0" || r.useless
}

// A call whose credential was revoked is made once more with another one, if it has no
// body, and never a third time.
func TestRejectedCredential(t *testing.T) {
	for _, test := range []struct {
		name, method, body string
		useless            bool
		calls, status      int
	}{
		{"GET", http.MethodGet, "", false, 2, http.StatusOK},
		{"a body", http.MethodPost, "body", false, 1, http.StatusUnauthorized},
		{"rejected again", http.MethodGet, "", true, 2, http.StatusUnauthorized},
	} {
		t.Run(test.name, func(t *testing.T) {
			calls, c := 0, &replaced{useless: test.useless}
			w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				calls++
				if r.Header.Get("Authorization") != "Bearer a-long-token-1" || test.useless {
					rw.WriteHeader(http.StatusUnauthorized)
				}
			}), nil)
			w.transport.Credentials = c
			r, err := http.NewRequestWithContext(t.Context(), test.method, w.host.URL+"/v1/x", strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if test.body == "" {
				r.Body = http.NoBody
			}
			resp, err := w.transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if calls != test.calls || resp.StatusCode != test.status {
				t.Errorf("got %s after %d calls, want %d after %d", resp.Status, calls, test.status, test.calls)
			}
		})
	}
}
