package verify_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"

	"accessbroker.internal/verify"
)

// A service accepts tokens of a broker for its calls.
func Example() {
	v, err := verify.New(verify.Config{
		Issuer:   "https://broker.acme.test",
		Audience: "https://tickets.acme.test",
	})
	if err != nil {
		log.Fatal(err)
	}
	tickets := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := verify.FromContext(r.Context())
		_, _ = fmt.Fprintf(w, "tickets for %s\n", claims.Subject)
	})
	mux := http.NewServeMux()
	mux.Handle("GET /tickets", v.Handler(tickets, "tickets:read"))
	mux.Handle("POST /tickets/close", v.Handler(tickets, "tickets:close"))
	server := &http.Server{Addr: "127.0.0.1:8444", Handler: mux}
	_ = server // server.ListenAndServeTLS(…)
}

// A service sees revocations at once, because it introspects every token. The broker accepts
// that from the resource_servers of the tokens' issuer.
func ExampleIntrospection() {
	v, err := verify.New(verify.Config{
		Issuer:   "https://broker.acme.test",
		Audience: "https://tickets.acme.test",
		Introspection: &verify.Introspection{
			Authorize: func(context.Context) (string, error) {
				svid, err := os.ReadFile("/run/spiffe/broker.jwt") // a JWT-SVID for the broker
				return string(svid), err
			},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("GET /tickets", v.Handler(http.NotFoundHandler(), "tickets:read"))
}

// A service that does not speak HTTP checks a token by itself.
func ExampleVerifier_Token() {
	v, err := verify.New(verify.Config{Issuer: "https://broker.acme.test", Audience: "https://queue.acme.test"})
	if err != nil {
		log.Fatal(err)
	}
	claims, err := v.Token(context.Background(), "not a token", verify.Presentation{}, "queue:write")
	fmt.Println(claims, err)
	// Output: <nil> invalid token: it is not a signed JWT
}

// A service demands that tokens are bound to a DPoP key or a certificate, and that each proof
// has one of its nonces.
func ExampleDPoP() {
	key, err := os.ReadFile("/etc/tickets/nonce.key") // the same for all processes
	if err != nil {
		log.Fatal(err)
	}
	v, err := verify.New(verify.Config{
		Issuer: "https://broker.acme.test", Audience: "https://tickets.acme.test",
		RequireBinding: true,
		DPoP:           verify.DPoP{URL: "https://tickets.acme.test", NonceKey: key},
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("GET /tickets", v.Handler(http.NotFoundHandler(), "tickets:read"))
}
