package api_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"accessbroker.internal/api"
)

// The client proves its caller with an X.509-SVID. In production, the SPIFFE
// Workload API supplies and renews it.
func exampleClient() *api.Client {
	certificate := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair("svid.pem", "svid.key")
		return &pair, err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{GetClientCertificate: certificate}}
	return &api.Client{BaseURL: "https://broker.acme.test", HTTP: &http.Client{Transport: transport}}
}

// AskAndCollect returns the credential at once if the request needs no approval.
func ExampleClient_AskAndCollect() {
	client := exampleClient()
	credential, pending, err := client.AskAndCollect(context.Background(), api.Ask{
		Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "triage of INC-4711",
	})
	var refused *api.Error
	switch {
	case errors.As(err, &refused) && refused.Allowed != nil:
		fmt.Println("policy permits", refused.Allowed.Scopes)
	case err != nil:
		fmt.Println(err)
	case pending != nil:
		fmt.Println(pending.ID, "needs approval")
	default:
		fmt.Println(credential.Lease, "expires at", credential.ExpiresAt) // printing the secret prints [secret]
	}
}

// A request that needs approval is polled until its status changes. Package agent
// does the same with back-off and a deadline.
func ExampleClient_Await() {
	ctx, client := context.Background(), exampleClient()
	r, err := client.Ask(ctx, api.Ask{
		Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "duplicates",
	})
	for err == nil && r.Status == api.StatusPending {
		r, err = client.Await(ctx, r.ID, r.Version, 30*time.Second)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	if r.Status != api.StatusApproved {
		fmt.Println(r.ID, "is", r.Status)
		return
	}
	credential, err := client.Collect(ctx, r.ID)
	fmt.Println(credential, err)
}

// All attempts of one call share an idempotency key: if the answer to an attempt is
// lost, the broker revokes its credential and issues another. If the last attempt
// fails, a credential may exist that no one received. Revoke it.
func ExampleClient_Collect() {
	ctx, client := context.Background(), exampleClient()
	const request = "req_0658sg2b7puh5u0qv0s9k8g6nk"
	credential, err := client.Collect(ctx, request)
	if api.Unreachable(err) {
		live, err := client.Leases(ctx, api.LeaseFilter{Request: request, Live: true})
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, lease := range live.Leases {
			_, err := client.Revoke(ctx, lease.ID, "the answer was lost")
			fmt.Println(lease.ID, err)
		}
		return
	}
	fmt.Println(credential, err)
}

// Revoke returns a credential that is no longer needed. The result states whether it
// has stopped working.
func ExampleClient_Revoke() {
	lease, err := exampleClient().Revoke(context.Background(), "lse_0658sg2b7puh5u0qv0s9k8g6nk", "the job is done")
	switch {
	case err != nil:
		fmt.Println(err)
	case lease.Revocation == "immediate":
		fmt.Println("the credential has stopped working")
	case lease.Revocation == "pending":
		fmt.Println("the issuer has not confirmed the revocation yet")
	default:
		fmt.Println("the credential works until", lease.ExpiresAt)
	}
}
