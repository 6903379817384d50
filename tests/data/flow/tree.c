/*
 * A module whose init and exit call in each way that a tree of calls has to show; tests/unit/test_init_tree.py says what
 * is to be seen. Functions without a body are the kernel's.
 */
#define noinline __attribute__((__noinline__, __noclone__))
#define init __attribute__((__section__(".init.text"), __used__))
#define used __attribute__((__used__))

__attribute__((section(".modinfo"), __used__)) static const char modinfo[] = "name=tree\0license=GPL\0vermagic=none";
__attribute__((section(".gnu.linkonce.this_module"), __used__)) char __this_module[64];

void *create(const char *name, unsigned int size, unsigned int align, unsigned long flags, void (*ctor)(void *));
int print(const char *format, ...);
int something(void);
void *an_object(void);
void number(int n), pair(int n, int m), one(int n), fill_in(int *p), at(const void *p);
void before(void), either(void), or(void), behind(void), repeated(void), at_last(void);
int get_first(void), get_second(void);
void undo_first(void), inside(void);
int smp_call_function_single(int cpu, void (*func)(void *), void *info, int wait);
void __static_call_update(void *key, void *trampoline, void *func);

struct ops {
	long unused;
	int (*set_up)(void);
};

int (*hook)(void);
static const struct { long a, b; } table = { 1, 2 };
static const char stored[] = "in an object of its own";

/* In the order of the source, whatever the compiler makes of the branches. */
static noinline int order(void)
{
	before();
	if (something())
		either();
	else
		or();
	behind();
	for (int i = something(); i > 0; i--)
		repeated();
	at_last();
	return something();
}

static noinline int unwind(void)
{
	int r = get_first();

	if (r)
		goto out;
	r = get_second();
	if (r)
		goto out_first;
	return 0;
out_first:
	undo_first();
out:
	print("failed: %d\n", r);
	return r;
}

static noinline int pass_on(const char *name)
{
	return !create(name, 16, 0, 0, 0);
}

static noinline int looks_at_one(int n)
{
	one(n);
	return something();
}

static noinline void arguments(void)
{
	int local, n;

	create("a_cache", 128, 8, 0x2000, 0);
	one(2); /* what create() was given is gone */
	__asm__ volatile("mov $5, %%esi" ::: "rsi"); /* rubbish where a second argument would be */
	one(1);
	__asm__ volatile("mov $6, %%esi" ::: "rsi");
	looks_at_one(3);
	looks_at_one(4);
	pair(something(), 7);
	number(something());
	if (something()) {
		before();
		n = 64;
	} else {
		behind();
		n = 128;
	}
	number(n);
	print("no more\n");
	print("%s %d\n", "text", 5);
	at(&table);
	at(stored);
	fill_in(&local);
	pass_on("first");
	pass_on("second");
}

static noinline int cloned(int n) __asm__("cloned.constprop.0");
static noinline int cloned(int n)
{
	number(n);
	return something();
}

static noinline int ops_set_up(void)
{
	return something();
}

static const struct ops ops = { 0, ops_set_up };

static noinline int run_ops(const struct ops *given)
{
	return given->set_up() + 1;
}

static void callback(void *info)
{
	inside();
}

static noinline int not_known(void)
{
	const struct ops *given = an_object();

	return given->set_up() + 1;
}

static noinline int odd(int n);
static noinline int even(int n)
{
	return n ? odd(n - 1) + something() : 0;
}

static noinline int odd(int n)
{
	return n ? even(n - 1) + something() : 1;
}

static used noinline int as_in_the_file(void)
{
	return something();
}

static used noinline int chosen(void)
{
	return something();
}

/* DEFINE_STATIC_CALL(static_one, as_in_the_file); include/linux/static_call.h */
__asm__(".pushsection .static_call.text, \"ax\"\n.type __SCT__static_one, @function\n__SCT__static_one: jmp as_in_the_file\n"
	".size __SCT__static_one, . - __SCT__static_one\n.popsection");
extern int __SCT__static_one(void);
static char __SCK__static_one;

init int tree_init(void)
{
	int r = order() + unwind();

	arguments();
	r += cloned(something());
	r += run_ops(&ops);
	r += smp_call_function_single(0, callback, 0, 1);
	r += not_known();
	r += even(something());
	__static_call_update(&__SCK__static_one, __SCT__static_one, chosen);
	r += __SCT__static_one();
	return r;
}

used void tree_exit(void)
{
	__SCT__static_one();
	hook();
}

int init_module(void) __attribute__((__alias__("tree_init")));
void cleanup_module(void) __attribute__((__alias__("tree_exit")));
