package agent_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
)

// A program obtains a credential, waits for its approval, and writes it to a file for
// another program. If the file can't be written, the lease is returned.
func Example() {
	ctx, client := context.Background(), &api.Client{BaseURL: "https://broker.acme.test"}
	ask := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "duplicates"}
	credential, err := agent.Obtain(ctx, client, ask, agent.Wait{For: time.Hour, Progress: func(p agent.Progress) {
		fmt.Println(p.Request.ID, p.Request.Status, p.Left)
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = agent.HandOver(ctx, client, credential, func(c *api.Credential) error {
		return os.WriteFile("/run/reports/token", []byte(c.Secret["token"]), 0o600)
	})
	fmt.Println(err)
}

// A consumer uses a credential for longer than it is valid. Held renews it until the
// consumer ends or the broker refuses.
func ExampleHeld() {
	ctx, client := context.Background(), &api.Client{BaseURL: "https://broker.acme.test"}
	credential, err := agent.Obtain(ctx, client, api.Ask{Entitlement: "tickets-api"}, agent.Wait{})
	if err != nil {
		fmt.Println(err)
		return
	}
	held := agent.Held{Client: client, Credential: credential, Replace: func(c *api.Credential) error {
		fmt.Println("now using", c.Lease)
		return nil
	}}
	for usable := true; usable && ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-time.After(held.Due()):
			if usable, err = held.Renew(ctx); err != nil {
				fmt.Println(err)
			}
		}
	}
	fmt.Println(held.Return(ctx, "the consumer ended"))
}
