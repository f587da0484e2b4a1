package tokensource_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"accessbroker.internal/agent/tokensource"
	"accessbroker.internal/api"
)

// A pod proves its identity with the token of a projected volume. The token is read for
// each call, because kubelet renews it.
func ExampleFile() {
	client := &api.Client{
		BaseURL: "https://broker.acme.test:8443",
		Token:   tokensource.File("/var/run/secrets/access-broker/token"),
	}
	credential, pending, err := client.AskAndCollect(context.Background(), api.Ask{Entitlement: "orders-db-ro"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(credential != nil, pending)
}

// A job of GitHub Actions requests a token for each call.
func ExampleGitHub_Token() {
	const broker = "https://broker.acme.test:8443"
	github := tokensource.GitHub{
		URL: os.Getenv(tokensource.GitHubURLVariable), RequestToken: os.Getenv(tokensource.GitHubTokenVariable),
		Audience: broker,
	}
	client := &api.Client{BaseURL: broker, Token: github.Token}
	who, err := client.WhoAmI(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(who.ID)
}
