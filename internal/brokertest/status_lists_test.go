package brokertest

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// A listedToken is a token with a place in a status list.
type listedToken struct {
	text  api.Token
	lease string
	from  *api.Client
	uri   string
	index int
}

// claims decodes the claims of a JWT without checking it.
func claims[T any](t testing.TB, token string) (out T) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("not a JWT: %d parts", len(parts))
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (b *Broker) listedToken(holder *api.Client) listedToken {
	b.t.Helper()
	token, err := holder.Exchange(b.t.Context(), api.TokenRequest{Audience: "listed-api", Scopes: []string{"listed:read"}})
	b.must(err)
	b.Secret(string(token.AccessToken))
	c := claims[struct {
		Status struct {
			List struct {
				Index int    `json:"idx"`
				URI   string `json:"uri"`
			} `json:"status_list"`
		} `json:"status"`
	}](b.t, string(token.AccessToken))
	if c.Status.List.URI == "" {
		b.t.Fatal("the token has no place in a status list")
	}
	return listedToken{token.AccessToken, token.Lease, holder, c.Status.List.URI, c.Status.List.Index}
}

// listed returns the status of a token in its list, which is fetched anew.
func (b *Broker) listed(of listedToken) int {
	b.t.Helper()
	text, err := api.StatusListClient{Client: b.Anonymous()}.List(b.t.Context(), path.Base(of.uri))
	b.must(err)
	list := claims[struct {
		Subject  string `json:"sub"`
		IssuedAt int64  `json:"iat"`
		Expires  int64  `json:"exp"`
		TTL      int64  `json:"ttl"`
		List     struct {
			Bits int    `json:"bits"`
			Text string `json:"lst"`
		} `json:"status_list"`
	}](b.t, string(text))
	if list.Subject != of.uri || list.TTL != 15 || list.Expires != list.IssuedAt+60 || list.List.Bits != 1 {
		b.t.Fatalf("got the list %+v", list)
	}
	packed, err := base64.RawURLEncoding.DecodeString(list.List.Text)
	b.must(err)
	z, err := zlib.NewReader(bytes.NewReader(packed))
	b.must(err)
	bits, err := io.ReadAll(z)
	b.must(err)
	if len(bits) != 1<<17 {
		b.t.Fatalf("got a list of %d bytes, want 128 KiB", len(bits))
	}
	return int(bits[of.index/8] >> (of.index % 8) & 1)
}

// A status list states the same as an introspection, whatever ended the token or blocks it, and
// also after a restart.
func TestStatusListAgreesWithIntrospection(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b := New(t)
	server, operator := b.Client(Tickets), b.Operator()
	var holders []*api.Client
	for i := range 3 {
		holders = append(holders, b.Client(agentID(i)))
	}
	var tokens []listedToken
	blocked := map[int]bool{}
	checked, invalid := 0, 0
	for step := range 60 {
		i := random.IntN(len(holders))
		switch random.IntN(6) {
		case 0, 1, 2:
			if !blocked[i] {
				tokens = append(tokens, b.listedToken(holders[i]))
			}
		case 3:
			if len(tokens) > 0 {
				b.end(tokens[random.IntN(len(tokens))])
			}
		default:
			block := api.BlockChange{Selector: api.Selector{Holder: agentID(i)}, Reason: "test", Unmatched: true}
			if blocked[i] {
				b.must(operator.Lift(t.Context(), block))
			} else {
				b.must(operator.Block(t.Context(), block))
			}
			blocked[i] = !blocked[i]
		}
		for _, token := range tokens {
			in, err := server.Introspect(t.Context(), token.text)
			b.must(err)
			status := b.listed(token)
			if in.Active != (status == 0) {
				t.Fatalf("seed %d, step %d: the introspection states active %v, and the list status %d", seed, step, in.Active, status)
			}
			checked++
			invalid += status
		}
	}
	if checked < 100 || invalid < 5 || invalid == checked {
		t.Fatalf("checked %d tokens, of which %d were invalid", checked, invalid)
	}
}

// end returns a token, unless it was returned before.
func (b *Broker) end(token listedToken) {
	b.t.Helper()
	b.must(token.from.RevokeToken(b.t.Context(), token.text))
}

func agentID(i int) string { return fmt.Sprintf("spiffe://acme.test/agent/l%d", i) }
