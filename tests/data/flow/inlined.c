/* Small functions that a compiler inlines, and functions that keep an order with them or break it (test_inlined.py).
 * BODY decides: inlined, or called. Each family has one rule; what it is about is in front of it. */
#define used __attribute__((used))

__attribute__((section(".modinfo"), __used__)) static const char modinfo[] = "name=flow\0license=GPL\0vermagic=none";
__attribute__((section(".gnu.linkonce.this_module"), __used__)) char __this_module[64];

int state, flag, c, d;
extern void first(void), then(void), work(int), create(const char *, int);
extern int ask(int), tell(int, int);

static BODY void setup(int x)
{
	if (x)
		work(1);
	state = 1;
	work(2);
}

static BODY int check(int x)
{
	if (d)
		return -1;
	work(3);
	return ask(x);
}

static BODY void publish(int x)
{
	flag = x;
	work(4);
}

static BODY void region(void)
{
	work(5);
	if (c)
		then();
	work(6);
}

static BODY int begin(int x)
{
	state = x;
	setup(x);
	publish(x);
	return ask(x);
}

static BODY int sum(int x)
{
	return x + c;
}

static BODY void record(int x)
{
	flag = x;
}

static BODY void create_it(const char *name)
{
	create(name, 1);
}

/* Called, whatever it is elsewhere: the compiler does not see that it is this function. */
#define called(function) ({ void (*to)(int) = function; asm("" : "+r"(to)); to; })

/* first = setup, then = then */
used int holds_first(int x) { setup(x); then(); return 0; }
used int breaks_first_branch(int x) { if (x) setup(x); then(); return 0; }
used int holds_first_branch(int x) { if (x) setup(1); else setup(0); then(); return 0; }
used int breaks_first_later(int x) { then(); setup(x); return 0; }
used int breaks_first_loop(int x) { int i; for (i = 0; i < x; i++) setup(i); then(); return 0; }
used int holds_first_loop(int x) { int i = 0; do setup(i); while (++i < x); then(); return 0; }
used int holds_first_in_each(int x) { int i; for (i = 0; i < x; i++) { setup(i); then(); } return 0; }
used int breaks_first_in_each(int x) { int i; for (i = 0; i < x; i++) { then(); setup(i); } return 0; }
used int holds_first_error(int x) { int r = ask(x); if (r) return r; setup(x); r = ask(r); if (r) return r; then(); return 0; }
used int breaks_first_error(int x) { int r = ask(x); if (r) goto out; setup(x); out: then(); return r; }
used int holds_first_called(int x) { if (x) setup(x); else called(setup)(x); then(); return 0; }
used int breaks_first_called(int x) { if (x) setup(x); else called(publish)(x); then(); return 0; }
used int holds_first_deep(int x) { if (begin(x)) return -1; then(); return 0; }
used int breaks_first_other_way(int x) { if (x) { setup(x); return 0; } then(); return 1; }

/* first = check, then = then */
used int holds_check(int x) { int r = check(x); if (r) return r; then(); return 0; }
used int breaks_check(int x) { int r = 0; if (x) r = check(x); if (r) return r; then(); return 0; }

/* first = region, then = then */
used int breaks_region(void) { region(); return 0; }

/* first = first, then = publish */
used int holds_then(int x) { first(); publish(x); return 0; }
used int breaks_then(int x) { publish(x); first(); return 0; }
used int breaks_then_branch(int x) { if (x) first(); publish(x); return 0; }
used int holds_then_error(int x) { if (ask(x)) return -1; first(); if (ask(c)) { publish(1); return -1; } publish(2); return 0; }
used int breaks_then_error(int x) { if (ask(x)) { publish(0); return -1; } first(); publish(1); return 0; }
used int holds_then_loop(int x) { int i; first(); for (i = 0; i < x; i++) publish(i); return 0; }
used int breaks_then_loop(int x) { int i; for (i = 0; i < x; i++) first(); publish(i); return 0; }
used int holds_then_deep(int x) { first(); return begin(x); }
used int breaks_then_deep(int x) { int r = begin(x); first(); return r; }
used int holds_then_called(int x) { first(); called(publish)(x); publish(x); return 0; }

/* first = setup, then = publish */
used int holds_both(int x) { setup(x); publish(x); return 0; }
used int breaks_both(int x) { publish(x); setup(x); return 0; }
used int breaks_both_branch(int x) { if (x) setup(x); publish(x); return 0; }
used int holds_both_deep(int x) { return begin(x); }

/* within = region, then = then */
used int holds_within(int x) { work(x); region(); work(x); return 0; }
used int breaks_within(int x) { region(); if (x) then(); return 0; }
used int breaks_within_before(int x) { if (x) then(); region(); return 0; }

/* first = setup, then = a store to flag */
used int holds_store(int x) { setup(x); flag = 3; return 0; }
used int breaks_store(int x) { flag = 3; setup(x); return 0; }

/* first = a store to flag, then = setup */
used int holds_stored(int x) { flag = 3; setup(x); return 0; }
used int breaks_stored(int x) { setup(x); flag = 3; return 0; }

/* then = a function that is given "a", first = first */
used int holds_arg(void) { create_it("b"); first(); create_it("a"); return 0; }
used int breaks_arg(void) { create_it("a"); first(); create_it("b"); return 0; }

/* first = check that gave 0, then = then */
used int holds_success(int x) { int r = check(x); if (r) return r; then(); return 0; }

/* first = sum, then = then: no compiler keeps it anywhere in particular */
used int holds_sum(int x) { int r = sum(x); then(); return r; }

/* first = record, then = then */
used int holds_record(int x) { record(x); then(); return 0; }
used int breaks_record(int x) { if (x) record(x); then(); return 0; }
used int breaks_record_later(int x) { then(); record(x); return 0; }
