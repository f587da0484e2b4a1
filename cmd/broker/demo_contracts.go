package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/devworld"
)

// demoSupplier is the supplier's program.
const demoSupplier = "spiffe://" + devworld.TrustDomain + "/vendors/acme-data/loader"

// assessSupplier shows a request of a supplier that waits until a person has assessed the
// supplier's risk.
func (d *demo) assessSupplier(ctx context.Context) error {
	d.tell.Open("A supplier's program waits until a person has assessed the supplier")
	supplier, done, err := d.connect(ctx, d.clientOf("supplier"))
	if err != nil {
		return err
	}
	defer done()
	pending, err := supplier.Ask(ctx, d.requests("the nightly load", "tickets:read"))
	if err != nil {
		return err
	}
	d.tell.Waiting(pending.Status, "%s", approvalsMissing(pending))
	if err := expect(pending.Status == api.StatusPending, "the request is %s", pending.Status); err != nil {
		return err
	}
	if err := d.assessAsDan(ctx); err != nil {
		return err
	}
	if _, err := supplier.Await(ctx, pending.ID, pending.Version, 20*time.Second); err != nil {
		return err
	}
	credential, err := supplier.Collect(ctx, pending.ID)
	if err != nil {
		return err
	}
	d.tell.Good("issued", "a token until %s, for the request that waited", clock(credential.ExpiresAt))
	return d.calls(ctx, http.MethodGet, "/tickets/4711", credential.Secret["token"], http.StatusOK)
}

// assessAsDan shows the assessment, with the operator's question.
func (d *demo) assessAsDan(ctx context.Context) error {
	dan, err := d.logIn(ctx, "dan")
	if err != nil {
		return err
	}
	d.tell.Say("Dan, of the security team, answers the operator's question:")
	args := []string{"assess", "acme-data", "--risk", "low", "--evidence", "https://docs.acme.test/acme.pdf", "--until", time.Now().AddDate(0, 3, 0).Format(time.DateOnly)}
	d.tell.Types("broker " + strings.Join(args, " "))
	code := dan.runs(ctx, "In Frankfurt", args...)
	for row := range strings.Lines(d.screen) {
		if name, _, _ := strings.Cut(row, "  "); name != "supplier" && name != "assessment" {
			d.tell.Shows(row)
		}
	}
	return expect(code == exitOK, "broker assess ended with %d", code)
}

// endContracts shows that access ends with the contract it rests on.
func (d *demo) endContracts(ctx context.Context) error {
	d.tell.Open("A contractor's access ends with the contract, and no one has to act")
	kim, err := d.logIn(ctx, "kim")
	if err != nil {
		return err
	}
	request := []string{"request", "tickets-api", "--as-person", "--why", "INC-4711"}
	d.tell.Types("broker " + strings.Join(request, " "))
	code := kim.runs(ctx, "", append(request, "-o", "json")...)
	var credential api.Credential
	if err := json.Unmarshal([]byte(d.screen), &credential); err != nil || code != exitOK {
		return fmt.Errorf("broker request ended with %d and %q", code, d.screen)
	}
	d.tell.Good("issued", "a token for Kim, a contractor, until %s", clock(credential.ExpiresAt))
	if err := d.moveTime(ctx); err != nil {
		return err
	}
	if err := d.awaitEnd(ctx, "login/kim", "Kim's"); err != nil {
		return err
	}
	if err := d.awaitEnd(ctx, demoSupplier, "the supplier's"); err != nil {
		return err
	}
	code = kim.runs(ctx, "", request...)
	d.tell.Bad("refused", "%s", strings.TrimPrefix(strings.TrimSpace(d.screen), "broker: "))
	if err := expect(code == exitDenied, "after the contract's end, broker request ended with %d", code); err != nil {
		return err
	}
	if _, err := d.logIn(ctx, "kim"); err == nil || !strings.Contains(err.Error(), "403") {
		return fmt.Errorf("after the contract's end, Kim's login: got %v, want a refusal", err)
	}
	d.tell.Bad("refused", "a new login of Kim")
	return d.refuseSupplier(ctx)
}

// contractEnd is the end of every contract in the world's files.
const contractEnd = "2099-12-31"

// moveTime lets the contracts end now: their end in the files becomes the present moment.
func (d *demo) moveTime(ctx context.Context) error {
	d.tell.Note("TIME", "moves forward: the contracts of Kim (people.yaml) and of acme-data (suppliers.yaml) end now")
	for _, name := range []string{"policies/people.yaml", "policies/suppliers.yaml"} {
		content, err := os.ReadFile(d.world.Path(name))
		if err != nil {
			return fmt.Errorf("moving time forward: %w", err)
		}
		ended := bytes.Replace(content, []byte(contractEnd), []byte(time.Now().UTC().Format(time.RFC3339)), 1)
		if bytes.Equal(ended, content) {
			return fmt.Errorf("moving time forward: %s has no contract until %s", name, contractEnd)
		}
		if err := d.world.Replace(name, ended); err != nil {
			return fmt.Errorf("moving time forward: %w", err)
		}
	}
	_, err := d.world.Service().Reload(ctx, broker.Identity{})
	return err
}

// awaitEnd waits until the only lease of a holder has ended, as Dan sees it, and tells why.
func (d *demo) awaitEnd(ctx context.Context, holder, whose string) error {
	for {
		l, err := d.leaseOf(ctx, holder)
		if err != nil {
			return err
		}
		if l.Status == api.LeaseRevoked {
			if l.EndedBy == nil {
				return fmt.Errorf("the lease of %s ended by %q, want the end of a fact", holder, l.EndHow)
			}
			d.tell.Bad(l.Status, "%s lease: %s (%s: %s)", whose, l.EndHow, l.EndedBy.Fact, l.EndedBy.Cause)
			return expect(l.EndHow == "fact_ended", "the lease of %s ended by %s", holder, l.EndHow)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the lease of %s is %s: %w", holder, l.Status, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// leaseOf returns the only lease of a holder, as Dan sees it.
func (d *demo) leaseOf(ctx context.Context, holder string) (*api.Lease, error) {
	dan := demoPerson{d, d.homeOf("dan")} // who has logged in
	code := dan.runs(ctx, "", "leases", "--holder", holder, "--as-person", "-o", "json")
	var page api.LeasePage
	if err := json.Unmarshal([]byte(d.screen), &page); err != nil || code != exitOK {
		return nil, fmt.Errorf("broker leases ended with %d and %q", code, d.screen)
	}
	if len(page.Leases) != 1 {
		return nil, fmt.Errorf("%s has %d leases, want 1", holder, len(page.Leases))
	}
	return &page.Leases[0], nil
}

// refuseSupplier shows that a supplier gets nothing after its contract.
func (d *demo) refuseSupplier(ctx context.Context) error {
	supplier, done, err := d.connect(ctx, d.clientOf("supplier"))
	if err != nil {
		return err
	}
	defer done()
	d.tell.Say("The supplier's program requests once more:")
	_, _, err = supplier.AskAndCollect(ctx, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "the nightly load"})
	var refused *api.Error
	if !errors.As(err, &refused) {
		return fmt.Errorf("the supplier's request after its contract: got %v", err)
	}
	why := strings.Join(refused.Reasons, "; ")
	d.tell.Bad("refused", "%d %s: %s", refused.Status, refused.Code, why)
	return expect(refused.Code == api.Denied && strings.Contains(why, "contract"), "got refusal %+v", refused)
}
