package broker

import (
	"errors"
	"fmt"
	"slices"

	"accessbroker.internal/audit"
)

// People link the accounts that one person has at several providers. The zero value links
// none. It is immutable.
//
// A person counts once and has one set of conflicts of interest, limits and blocks, whatever
// the account. Rights stay with each account: membership of a group and permits of policy
// are not shared, so that the weakest provider does not decide about the rights of all.
type People struct {
	accounts map[string][]string // by account; the person's main account first
}

// Bounds of the accounts of one person: records list them.
const (
	maxAccounts     = 8
	maxAccountBytes = 700 // as a record encodes them
)

// NewPeople links accounts. Each list has the accounts of one person, the main one first.
func NewPeople(aliases [][]string) (People, error) {
	p := People{accounts: map[string][]string{}}
	var errs []error
	for _, accounts := range aliases {
		if err := p.add(accounts); err != nil {
			errs = append(errs, err)
		}
	}
	return p, errors.Join(errs...)
}

func (p People) add(accounts []string) error {
	if len(accounts) < 2 {
		return fmt.Errorf("%q links no accounts: list at least two accounts of the person", accounts)
	}
	size := 0
	for _, account := range accounts {
		size += len(audit.AppendString(nil, account))
	}
	if len(accounts) > maxAccounts || size > maxAccountBytes {
		return fmt.Errorf("%s has too many accounts: a person has at most %d, of %d bytes in total", quoted(accounts[0]), maxAccounts, maxAccountBytes)
	}
	for _, account := range accounts {
		if _, _, err := ParsePerson(account); err != nil {
			return err
		}
		if p.accounts[account] != nil {
			return fmt.Errorf("account %q is listed twice: an account belongs to one person", account)
		}
		p.accounts[account] = accounts
	}
	return nil
}

// Accounts returns the accounts of the person with this account, the main one first; only
// the account itself if it is not linked. The caller must not change them.
func (p People) Accounts(account string) []string {
	if linked := p.accounts[account]; linked != nil {
		return linked
	}
	return []string{account}
}

// Same reports whether two accounts belong to one person.
func (p People) Same(a, b string) bool { return a == b || slices.Contains(p.accounts[a], b) }

// Contains reports whether the list has any account of the person with this account.
func (p People) Contains(list []string, account string) bool {
	return slices.ContainsFunc(list, func(other string) bool { return p.Same(other, account) })
}

// Expand returns the list with all accounts of its people, each once.
func (p People) Expand(list []string) []string {
	if len(p.accounts) == 0 {
		return list
	}
	var all []string
	for _, account := range list {
		for _, a := range p.Accounts(account) {
			if !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	return all
}

// Is reports whether an account belongs to this person, or is this identity.
func (who Identity) Is(account string) bool {
	return who.ID == account || slices.Contains(who.Accounts, account)
}

// main returns the name under which the identity is counted: a person's main account.
func (who Identity) main() string {
	if len(who.Accounts) > 0 {
		return who.Accounts[0]
	}
	return who.ID
}

// sameVoter reports whether two decisions are by one person.
func (a *Approval) sameVoter(b *Approval) bool {
	return a.Person == b.Person || slices.Contains(a.Accounts, b.Person) || slices.Contains(b.Accounts, a.Person)
}

// hasDecided reports whether the person decided already, with any account.
func hasDecided(who Identity, said []Approval) bool {
	return slices.ContainsFunc(said, func(a Approval) bool { return who.Is(a.Person) || slices.Contains(a.Accounts, who.ID) })
}

// byPerson returns one decision for each person, with the groups of all of the person's
// accounts. Two decisions of one person exist only if the accounts were linked afterwards.
// If they differ, the person did not approve.
func byPerson(votes []Approval) (people []Approval) {
	for _, v := range votes {
		i := slices.IndexFunc(people, func(p Approval) bool { return p.sameVoter(&v) })
		if i < 0 {
			people = append(people, v)
			continue
		}
		p := &people[i]
		p.Approve = p.Approve && v.Approve
		p.Groups = slices.Concat(p.Groups, v.Groups)
	}
	return people
}

// link sets the accounts of everyone who decided on the request, as they are linked now.
func (r *Request) link(people People) {
	for _, list := range [][]Approval{r.Approvals, r.Verdicts} {
		for i := range list {
			list[i].Accounts = people.accounts[list[i].Person]
		}
	}
}
