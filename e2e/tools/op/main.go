// Command op is an OpenID provider for tests, of the certified library
// github.com/zitadel/oidc: the library's own example server with people and
// their groups read from a file, anew for each token.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// A person of the file: the password of each is their name.
type person struct {
	Name   string   `json:"name"`
	Groups []string `json:"groups"`
}

// people are those of a file.
type people struct{ path string }

func (p people) read() map[string]person {
	text, err := os.ReadFile(p.path)
	if err != nil {
		log.Fatal(err)
	}
	var all map[string]person
	if err := json.Unmarshal(text, &all); err != nil {
		log.Fatal(err)
	}
	return all
}

// GetUserByID implements storage.UserStore.
func (p people) GetUserByID(id string) *storage.User {
	one, ok := p.read()[id]
	if !ok {
		return nil
	}
	return &storage.User{ID: id, Username: id, Password: id, FirstName: one.Name, LastName: "Test", Email: id + "@acme.test", EmailVerified: true}
}

// GetUserByUsername implements storage.UserStore.
func (p people) GetUserByUsername(name string) *storage.User { return p.GetUserByID(name) }

// ExampleClientID implements storage.UserStore.
func (people) ExampleClientID() string { return "" }

// A store says in which groups people are.
type store struct {
	*storage.Storage
	people people
}

// SetUserinfoFromRequest implements op.CanSetUserinfoFromRequest, for ID tokens.
func (s *store) SetUserinfoFromRequest(ctx context.Context, info *oidc.UserInfo, token op.IDTokenRequest, scopes []string) error {
	info.AppendClaims("groups", s.people.read()[token.GetSubject()].Groups)
	return s.Storage.SetUserinfoFromRequest(ctx, info, token, scopes)
}

// SetUserinfoFromToken implements op.Storage, for the userinfo endpoint.
func (s *store) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, tokenID, subject, origin string) error {
	info.AppendClaims("groups", s.people.read()[subject].Groups)
	return s.Storage.SetUserinfoFromToken(ctx, info, tokenID, subject, origin)
}

func main() {
	listen := flag.String("listen", "", "address")
	issuer := flag.String("issuer", "", "its URL")
	cert, key := flag.String("cert", "", "PEM"), flag.String("key", "", "PEM")
	file := flag.String("people", "", "JSON: people by their sub")
	client, secret := flag.String("client", "", "client id"), flag.String("secret", "", "client secret")
	redirect := flag.String("redirect", "", "redirect URI")
	flag.Parse()
	storage.RegisterClients(storage.WebClient(*client, *secret, *redirect))
	from := people{*file}
	s := &store{storage.NewStorage(from), from}
	router := exampleop.SetupServer(*issuer, s, slog.New(slog.NewTextHandler(os.Stderr, nil)), false)
	server := &http.Server{Addr: *listen, Handler: router, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServeTLS(*cert, *key))
}
